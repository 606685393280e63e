"""``lgg-flair`` and ``python -m pipeline``: an overview of the commands; followed by COMMAND, they run one."""

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
    "manifest": "turn a folder of slices into volumes and a manifest",
    "train": "train a bundle",
    "evaluate": "score bundles on a manifest, volume by volume",
    "report": "write one HTML page of evaluations",
    "predict": "segment volumes without truth",
    "pack": "put a bundle into a zip",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the overview, or run a command with the arguments that follow its name."""
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
        epilog=f"commands:\n{commands}\n\n{called} COMMAND --help tells a command's options.\n\n{STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lgg-flair-pipeline {__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    parser.parse_args(given)
    parser.print_help()
    return 0


def run() -> int:
    """The installed command ``lgg-flair``: its exit status."""
    return run_cli(main)


if __name__ == "__main__":
    sys.exit(run())
