"""Command line: evaluation folders -> one HTML page with tables, charts and a viewer, complete in itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import CommandParser, print_json, run_cli, say
from pipeline.pages import MAX_VIEWERS, REPORT_NAME


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = CommandParser(
        "report",
        description="One HTML page of one or several evaluations: tables, charts, slices. It needs neither weights nor "
        "network nor any other file. Research only.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="an --out folder of pipeline.evaluate")
    parser.add_argument("--out", type=Path, help=f"the page (default: {REPORT_NAME} in the first RUN)")
    parser.add_argument("--name", action="append", default=[], help="of each RUN in the page (default: its folder's)")
    parser.add_argument(
        "--viewers",
        type=int,
        default=MAX_VIEWERS,
        help="patients whose slices can be looked at, the worst first; the tables have all (default: %(default)s)",
    )
    parser.add_argument("--patients", nargs="+", default=[], metavar="ID", help="slices of these patients as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; the status for the shell."""
    args = arguments().parse_args(argv)
    from pipeline.pages.report import write_report  # heavy, and not needed for --help

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
