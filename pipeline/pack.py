"""Command line: a bundle's folder -> one reproducible zip with its SHA-256, ready to be given away."""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError, run_cli
from pipeline.scripts.files import sha256_bytes, write_durably
from pipeline.scripts.records import RECORD

MAX_BYTES = 25_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Earliest time a zip can hold; the same for every file, so that the same content gives the same bytes."""
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
TAKEN = ("LICENSE", "configs/*.json", "configs/logging.conf", "docs/**/*", "scripts/**/*.py", "models/model.pt")


def packed_files(bundle: Path) -> list[Path]:
    """Files of a bundle that go into its zip, sorted: no checkpoints, logs, caches or sources of the configs.

    Args:
        bundle: its folder.

    Raises:
        PipelineError: a file that a bundle needs is missing.
    """
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise PipelineError(
            f"{bundle}: found no {', '.join(missing)}. Run `make bundles`, and train the bundle for its weights."
        )
    patterns = (*TAKEN, f"models/{RECORD}", f"models/{RECORD}.sha256")
    return sorted({path for pattern in patterns for path in bundle.glob(pattern) if path.is_file()})


def zip_bytes(bundle: Path) -> bytes:
    """The zip of a bundle, below one folder of the bundle's name.

    Stored, not compressed: weights hardly shrink, and the bytes do not depend on the machine's zlib.

    Args:
        bundle: its folder.

    Raises:
        PipelineError: a file that a bundle needs is missing.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in packed_files(bundle):
            entry = zipfile.ZipInfo((Path(bundle.resolve().name) / path.relative_to(bundle)).as_posix(), EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Check a bundle, write its zip and the zip's SHA-256.

    Raises:
        PipelineError: no such bundle, a missing file, weights of another network or image size or others
            than the metadata names, or a zip over ``MAX_BYTES``.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.pack", description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", help="folder, or name below bundles/")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the zip (default: dist)")
    parser.add_argument("--trust", action="store_true", help="load the bundle though it is not this project's own")
    args = parser.parse_args(argv)
    bundle = Path(args.bundle) if Path(args.bundle).is_dir() else Path("bundles") / args.bundle
    if not bundle.is_dir():
        known = sorted(path.parent.name for path in Path("bundles").glob("*/network.yaml"))
        raise PipelineError(
            f"{args.bundle}: neither a folder nor a name below bundles/ (found there: {', '.join(known) or 'none'}). "
            "Run from the repository's root, or give a path."
        )
    data = zip_bytes(bundle)
    if len(data) > MAX_BYTES:
        raise PipelineError(
            f"{bundle}: {len(data)} bytes packed (expected at most {MAX_BYTES}). Use a smaller network."
        )
    from pipeline.bundle import load_bundle
    from pipeline.scripts.weights import shipped_sha256

    loaded = load_bundle(bundle, trust=args.trust)  # raises where the weights do not fit the network
    if loaded.settings:
        raise PipelineError(
            f"{bundle}: its weights were trained with another {', '.join(loaded.settings)} than its config says, and "
            "programs that take bundles read the config. Train with the config's own, or change its source, then "
            "`make bundles`."
        )
    named = shipped_sha256(bundle)
    if named not in (None, loaded.weights_sha256):
        raise PipelineError(
            f"{bundle}: configs/metadata.json tells of other weights (SHA-256 {named}) than models/model.pt "
            f"({loaded.weights_sha256}). Correct its source, network.yaml, then `make bundles`."
        )
    version = json.loads((bundle / "configs" / "metadata.json").read_bytes())["version"]
    target = args.out / f"{bundle.resolve().name}_v{version}.zip"
    digest = sha256_bytes(data)
    write_durably(target, data)
    write_durably(target.with_name(target.name + ".sha256"), f"{digest}  {target.name}\n".encode())
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
