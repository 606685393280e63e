"""Command line: a bundle's folder or zip -> what its files could run, read as text; nothing of it is run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError, run_cli
from pipeline.trust import faults_of, is_known, unpacked


def main(argv: Sequence[str] | None = None) -> int:
    """Read a bundle and say what was found.

    Raises:
        PipelineError: no folder, or a finding; every one with its file and line.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.vet", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path, help="its folder or zip")
    parser.add_argument(
        "files",
        nargs="*",
        help="paths below it, such as configs/inference.json: what will be run (default: all)",
    )
    args = parser.parse_args(argv)
    if args.bundle.is_file():
        with tempfile.TemporaryDirectory() as folder:
            return _read(unpacked(args.bundle, Path(folder)), args.files, args.bundle)
    return _read(args.bundle, args.files, args.bundle)


def _read(folder: Path, files: Sequence[str], name: Path) -> int:
    """Judge a bundle's folder; ``name`` is what it is called."""
    if not folder.is_dir():
        raise PipelineError(f"{name}: no folder (expected a bundle's, or its zip). Check the path.")
    if not (folder / "configs").is_dir():
        raise PipelineError(
            f"{name}: no folder configs/ at its top (expected a bundle's, or a zip of one). Check the path."
        )
    gone = [file for file in files if not (folder / file).is_file()]
    if gone:
        raise PipelineError(f"{name}: no {', '.join(gone)} in it. Check the path.")
    if is_known(folder):
        print(f"{name}: configs and scripts are, byte for byte, a bundle's of this project")
        return 0
    faults = faults_of(folder, only=files)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise PipelineError(f"{name}: {len(faults)} finding(s) beyond a plain bundle:\n{lines}")
    print(f"{name}: known components and plain expressions alone; nothing else was found")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
