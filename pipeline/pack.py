"""The command that checks a bundle and puts it into one reproducible zip, with its SHA-256 beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandParser, print_json, run_cli, say
from pipeline.model.packing import pack_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Check a bundle, write its zip and the zip's SHA-256."""
    parser = CommandParser(
        "pack",
        description="A bundle's folder -> one reproducible zip with its SHA-256, ready to be given away.",
    )
    parser.add_argument("bundle", help="name, such as basic_unet, or folder")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the zip (default: dist)")
    parser.add_argument("--trust", action="store_true", help="load the bundle though it is not this project's own")
    args = parser.parse_args(argv)
    packed = pack_bundle(args.bundle, args.out, trust=args.trust)
    say(f"{packed.path}: {packed.size_bytes / 1e6:.1f} MB, SHA-256 {packed.sha256}")
    if args.json:
        print_json({"zip": str(packed.path), "size_bytes": packed.size_bytes, "sha256": packed.sha256})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
