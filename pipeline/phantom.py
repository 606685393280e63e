"""Write a small synthetic dataset in the folder layout of the published one, to try all commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cohort.phantoms import make_phantoms
from pipeline.command_line import PROGRAM, CommandParser, print_json, run_cli, say


def main(argv: Sequence[str] | None = None) -> int:
    """Write the synthetic dataset, and print the next command.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: An option is out of its range, or OUT holds other phantoms and ``--force`` is missing.
    """
    parser = CommandParser("phantom", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="output folder, in which kaggle_3m/ is made")
    parser.add_argument("--patients", type=int, default=24, help="number of patients (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=128, help="height and width of a slice in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--slices", type=int, default=20, help="mean number of slices in a patient, +-25 %% (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed gives the same files (default: %(default)s)"
    )
    parser.add_argument(
        "--lesion-free",
        type=int,
        default=0,
        metavar="N",
        help="number of patients without a lesion, the first ones (default: %(default)s)",
    )
    parser.add_argument(
        "--volumes",
        action="store_true",
        help="also write FLAIR, T1 and mask of each patient as NIfTI with a voxel size, named as in BraTS, in "
        "OUT/volumes",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace phantoms in OUT that were written with other options"
    )
    args = parser.parse_args(argv)
    for_scripts = vars(args).pop("json")
    folder = make_phantoms(**vars(args))
    command = f"{PROGRAM} manifest {shlex.quote(str(folder))} --split random"
    say(f"{args.patients} phantoms in {folder}; next: {command} --out {shlex.quote(str(args.out / 'manifest'))}")
    if for_scripts:
        print_json({"folder": str(folder), "patients": args.patients})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
