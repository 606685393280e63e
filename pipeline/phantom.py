"""Write a small synthetic dataset in the published folder layout, to try every command with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cohort.phantoms import make_phantoms
from pipeline.command_line import CommandParser, print_json, program, run_cli, say


def main(argv: Sequence[str] | None = None) -> int:
    """Write the synthetic dataset and print the next command."""
    parser = CommandParser("phantom", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that receives kaggle_3m/")
    parser.add_argument("--patients", type=int, default=24, help="number of patients (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default %(default)s)")
    parser.add_argument("--slices", type=int, default=20, help="mean slices a patient, +-25 %% (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default %(default)s)")
    parser.add_argument("--lesion-free", type=int, default=0, metavar="N", help="leave the first N without lesion")
    parser.add_argument("--force", action="store_true", help="replace the phantoms of another call in OUT")
    args = parser.parse_args(argv)
    for_scripts = vars(args).pop("json")
    folder = make_phantoms(**vars(args))
    command = f"{program('manifest')} {shlex.quote(str(folder))} --split random"
    say(f"{args.patients} phantoms in {folder}; next: {command} --out {shlex.quote(str(args.out / 'manifest'))}")
    if for_scripts:
        print_json({"folder": str(folder), "patients": args.patients})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
