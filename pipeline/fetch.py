"""Command line: download the LGG Segmentation Dataset from Kaggle, for people who have the internet."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cohort.download import download, find_slices
from pipeline.command_line import run_cli
from pipeline.errors import PipelineError

LICENCE = """\
LGG Segmentation Dataset, licence CC BY-NC-SA 4.0 (no commercial use; share alike). If you use it, cite
  Buda et al., Computers in Biology and Medicine 109 (2019), and
  Mazurowski et al., Journal of Neuro-Oncology 133 (2017)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: download the dataset and print the next command.

    Raises:
        PipelineError: kagglehub missing, download failed, or no slices in what came.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.fetch",
        description=(__doc__ or "").strip(),
        epilog=LICENCE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dest", type=Path, metavar="DIR", help="empty folder to put it in (default: kagglehub's cache)"
    )
    args = parser.parse_args(argv)
    print(LICENCE)
    dest: Path | None = args.dest
    if dest is not None and dest.exists() and not dest.is_dir():
        raise PipelineError(f"{dest} is a file, expected a folder. Choose another --dest.")
    folder = find_slices(download(dest))
    patients = sum(entry.is_dir() for entry in folder.iterdir())
    command = f"python -m pipeline.manifest {shlex.quote(str(folder))}"
    print(f"{patients} patients in {folder}; next: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
