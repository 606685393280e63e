"""The command ``lgg-flair report``: one HTML page of evaluations, with tables, charts and a viewer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import PROGRAM, CommandParser, print_json, run_cli, say
from pipeline.pages import MAX_VIEWERS, REPORT_NAME


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = CommandParser(
        "report",
        description="Show one or several evaluations on one HTML page: tables, charts, slices. The page needs no other "
        "file. Research only.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=f"output folder of {PROGRAM} evaluate")
    parser.add_argument("--out", type=Path, help=f"file of the page (default: {REPORT_NAME} in the first RUN)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="name of a RUN on the page, given once for each RUN (default: the name of its folder)",
    )
    parser.add_argument(
        "--viewers",
        type=int,
        default=MAX_VIEWERS,
        help="number of patients with slices on the page, the lowest DSC first; the tables list all patients "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--patients", nargs="+", default=[], metavar="ID", help="also show the slices of these patients"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: An option is wrong, or a folder holds no evaluation.
    """
    args = arguments().parse_args(argv)
    from pipeline.pages.report import write_report  # It loads slowly, and --help does not need it.

    out, notes = write_report(args.runs, args.out, args.name, args.viewers, args.patients)
    for note in notes:
        say(f"note: {note}")
    size = out.stat().st_size / 1e6
    say(f"Research only, not for clinical use. Open in a browser: {out} ({size:.1f} MB)")
    if args.json:
        print_json({"report": str(out), "notes": notes})
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
