"""Download the LGG Segmentation Dataset from Kaggle. It needs the extra ``fetch`` and the internet."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cohort.download import download
from pipeline.command_line import PROGRAM, CommandParser, print_json, run_cli, say
from pipeline.errors import PipelineError

LICENCE = """\
LGG Segmentation Dataset, licence CC BY-NC-SA 4.0 (no commercial use; share
alike). If you use it, cite
  Buda et al., Computers in Biology and Medicine 109 (2019), and
  Mazurowski et al., Journal of Neuro-Oncology 133 (2017)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Download the dataset, and print the next command.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: The folder is not usable, or the download failed; the message says what to do.
    """
    parser = CommandParser(
        "fetch",
        description="Download the LGG Segmentation Dataset from Kaggle (needs the extra fetch).",
        epilog=LICENCE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dest", type=Path, metavar="DIR", help="empty folder for the dataset (default: the cache of kagglehub)"
    )
    args = parser.parse_args(argv)
    dest = args.dest
    say(LICENCE)
    if dest and dest.exists() and not dest.is_dir():
        raise PipelineError(f"--dest {dest}: is a file (expected a folder). Choose another --dest.")
    folder = download(dest)
    patients = sum(entry.is_dir() for entry in folder.iterdir())
    say(f"{patients} patients in {folder}; next: {PROGRAM} manifest {shlex.quote(str(folder))}")
    if args.json:
        print_json({"folder": str(folder), "patients": patients})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
