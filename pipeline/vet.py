"""Command line: a bundle's folder -> what its configs and other files could run, read as text; nothing of it is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError, run_cli
from pipeline.trust import faults_of, is_known


def main(argv: Sequence[str] | None = None) -> int:
    """Read a bundle and say what was found.

    Raises:
        PipelineError: no folder, or a finding; every one with its file and line.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.vet", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path, help="its folder")
    parser.add_argument(
        "files",
        nargs="*",
        help="paths below it, such as configs/inference.json: what will be run (default: all)",
    )
    args = parser.parse_args(argv)
    if not args.bundle.is_dir():
        raise PipelineError(f"{args.bundle}: no folder (expected a bundle's). Unpack the bundle first.")
    gone = [name for name in args.files if not (args.bundle / name).is_file()]
    if gone:
        raise PipelineError(f"{args.bundle}: no {', '.join(gone)} in it. Check the path.")
    if is_known(args.bundle):
        print(f"{args.bundle}: configs and scripts are, byte for byte, a bundle's of this project")
        return 0
    faults = faults_of(args.bundle, only=args.files)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise PipelineError(f"{args.bundle}: {len(faults)} finding(s) beyond a plain bundle:\n{lines}")
    print(f"{args.bundle}: known components and plain expressions alone; nothing else was found")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
