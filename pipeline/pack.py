"""The command ``lgg-flair pack``: check a bundle, and put it into one reproducible zip with its SHA-256 beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandParser, print_json, run_cli, say
from pipeline.model.packing import pack_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Check a bundle; write its zip and the SHA-256 of the zip.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: The folder is no complete bundle, or it is not this project's own and ``--trust`` is missing.
    """
    parser = CommandParser(
        "pack",
        description="Put the folder of a bundle into one reproducible zip, with its SHA-256 beside it, ready to share.",
    )
    parser.add_argument("bundle", help="name of a bundle, such as basic_unet, or its folder")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the zip (default: %(default)s)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a bundle that is not this project's own; its configs can run any code",
    )
    args = parser.parse_args(argv)
    packed = pack_bundle(args.bundle, args.out, trust=args.trust)
    say(f"{packed.path}: {packed.size_bytes / 1e6:.1f} MB, SHA-256 {packed.sha256}")
    if args.json:
        print_json({"zip": str(packed.path), "size_bytes": packed.size_bytes, "sha256": packed.sha256})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
