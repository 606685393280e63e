"""The program ``lgg-flair``, also ``python -m pipeline``: it shows the commands, or runs the one that is named."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from pipeline import __version__
from pipeline.command_line import PROGRAM, STATUSES, program, run_cli

COMMANDS = {
    "fetch": "download the LGG dataset from Kaggle",
    "phantom": "write a small synthetic dataset",
    "manifest": "turn a folder of slices or volumes into a manifest",
    "train": "train the network of a bundle",
    "evaluate": "score bundles on patients with true masks",
    "report": "show evaluations on one HTML page",
    "predict": "segment FLAIR images",
    "shape": "measure the shape of lesions, and test it against clinical data",
    "pack": "put a bundle into a zip file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the overview of the commands, or run the command that comes first in ``argv``.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in COMMANDS:
        command = importlib.import_module(f"pipeline.{given[0]}")
        return int(command.main(given[1:]))
    called = PROGRAM if program("").startswith(PROGRAM) else "python -m pipeline"
    commands = "\n".join(f"  {name:<9} {meaning}" for name, meaning in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=called,
        usage="%(prog)s [--version] COMMAND ...",
        description="FLAIR-abnormality segmentation in brain MRI. Research only, not for clinical use.",
        epilog=f"commands:\n{commands}\n\n{PROGRAM} COMMAND --help shows the options of a command.\n\n{STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lgg-flair-pipeline {__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    parser.parse_args(given)
    parser.print_help()
    return 0


def run() -> int:
    """Run the installed command ``lgg-flair``, and return its exit status."""
    return run_cli(main)


if __name__ == "__main__":
    sys.exit(run())
