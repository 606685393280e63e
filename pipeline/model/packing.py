"""Pack a bundle's folder into one zip for other programs; the same content gives the same bytes."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import named_path
from pipeline.model.bundle import load_bundle
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_bytes, write_durably
from pipeline.scripts.records import RECORD
from pipeline.scripts.weights import shipped_sha256

MAX_ZIP_BYTES = 25_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip, so that the same content gives the same bytes. It is the earliest that fits."""
IN_SOURCE = "Where the bundle has a network.yaml, change it there and run `make bundles`."
REQUIRED_FILES = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
PACKED_FILES = (
    *("LICENSE", "configs/*.json", "configs/logging.conf", "docs/**/*", "scripts/**/*.py", "models/model.pt"),
    *(f"models/{RECORD}", f"models/{RECORD}.sha256"),
)


@dataclass(frozen=True)
class PackedBundle:
    """A zip of a bundle. ``NAME.zip.sha256`` beside ``NAME.zip`` holds its hash.

    Args:
        path: The zip.
        sha256: SHA-256 of the zip.
        size_bytes: Size of the zip in bytes.
    """

    path: Path
    sha256: str
    size_bytes: int


def pack_bundle(bundle: str | Path, out: str | Path = "dist", *, trust: bool = False) -> PackedBundle:
    """Check a bundle; write its zip and the zip's SHA-256.

    Programs that use bundles read only the configs and the metadata. So the weights must fit the configs' network and
    settings, and must be those that the metadata names.

    Args:
        bundle: A bundle's name, such as ``basic_unet``, or its folder.
        out: The folder to write the zip to.
        trust: Also load a bundle that is not this project's. Its config can run any code.

    Returns:
        Path, hash and size of the zip.

    Raises:
        PipelineError: There is no such bundle, a file is missing, the weights do not fit configs or metadata, or the
            zip is larger than ``MAX_ZIP_BYTES``.

    Examples:
        >>> import pipeline
        >>> pipeline.pack_bundle("basic_unet", "dist").path.as_posix()
        'dist/basic_unet_v...zip'
    """
    folder = named_path(bundle, "bundles")
    data = _zip_bytes(folder)
    if len(data) > MAX_ZIP_BYTES:
        raise PipelineError(
            f"{folder}: {len(data)} bytes packed (expected at most {MAX_ZIP_BYTES}). Use a smaller network."
        )
    loaded = load_bundle(folder, trust=trust)  # raises where the weights do not fit the network
    if loaded.settings:
        raise PipelineError(
            f"{folder}: its weights were trained with another {', '.join(loaded.settings)} than its config says, and "
            "programs that use bundles read the config. Train with the config's own, or change the config. "
            f"{IN_SOURCE}"
        )
    named = shipped_sha256(folder)
    if named not in (None, loaded.weights_sha256):
        raise PipelineError(
            f"{folder}: configs/metadata.json names other weights (SHA-256 {named}) than models/model.pt "
            f"({loaded.weights_sha256}). Set `weights` in configs/metadata.json to "
            f'{{"sha256": "{loaded.weights_sha256}"}}, or remove it. Do the same with `eval_metrics`. {IN_SOURCE}'
        )
    metadata = folder / "configs" / "metadata.json"
    try:
        version = str(json.loads(metadata.read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{metadata}: names no version ({error!r}). Add it. {IN_SOURCE}") from error
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", version):
        raise PipelineError(
            f"{metadata}: version {shown(version)!r} (expected letters, digits and . _ + -). Correct it."
        )
    target = Path(out) / f"{folder.resolve().name}_v{version}.zip"
    sha256 = sha256_bytes(data)
    write_durably(target, data)
    write_durably(target.with_name(f"{target.name}.sha256"), f"{sha256}  {target.name}\n".encode())
    return PackedBundle(target, sha256, len(data))


def _zip_bytes(bundle: Path) -> bytes:
    """The bytes of a bundle's zip, with one folder of the bundle's name at its top.

    It leaves out checkpoints, logs, caches and the sources of configs. It is not compressed: weights hardly shrink, and
    so the bytes do not depend on the machine's zlib.
    """
    missing = [name for name in REQUIRED_FILES if not (bundle / name).is_file()]
    if missing:
        raise PipelineError(
            f"{bundle}: found no {', '.join(missing)} (a bundle needs it). Add it; a training writes the weights."
        )
    found = sorted({path for pattern in PACKED_FILES for path in bundle.glob(pattern) if path.is_file()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in found:
            entry = zipfile.ZipInfo((Path(bundle.resolve().name) / path.relative_to(bundle)).as_posix(), EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
