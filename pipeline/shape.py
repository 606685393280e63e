"""The command ``lgg-flair shape``: shape features of masks, and their association with clinical and genomic data."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import CommandParser, print_json, run_cli, say
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.features.measuring import ShapeResult


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = CommandParser(
        "shape",
        description="Measure the shape of lesions: the features of the LGG radiogenomics papers (Buda 2019) and common "
        "ones. Test them against a clinical table. Research only.",
    )
    parser.add_argument(
        "masks",
        type=Path,
        metavar="MASKS",
        help="folder of predict or evaluate, a mask NAME_mask.nii.gz, or a manifest, whose true masks are measured; an "
        "evaluation has predicted and true masks, which are compared",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="output folder for shape.csv, shape.json, shape.html and, with --clinical, associations.csv",
    )
    parser.add_argument(
        "--clinical",
        type=Path,
        metavar="CSV",
        help="table with a row for each patient, such as the published data.csv; the first column holds the patients",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns to test (default: all that divide the patients into 2 to 10 groups)",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="FEATURE",
        help="features to test, by their names in shape.csv (default: "
        "bounding_ellipsoid_volume_ratio angular_standard_deviation margin_fluctuation)",
    )
    parser.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar=("ROWS", "COLUMNS", "SLICES"),
        help="distances in mm of masks whose files do not say them, such as those of slices; without it, their "
        "features in mm are empty",
    )
    parser.add_argument(
        "--largest-component",
        action="store_true",
        help="measure only the largest component of each mask; predict keeps no other, but true masks may have several",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random tables of Fisher's exact test (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the masks, write tables and page, and print a summary.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: A mask, a table or an option cannot be used; the message says which.
    """
    args = arguments().parse_args(argv)
    for option in ("columns", "features"):
        if getattr(args, option) and not args.clinical:
            raise PipelineError(f"--{option} without --clinical (expected both). Pass --clinical CSV too.")
    from pipeline.features.measuring import PAGE_NAME, PAPER_FEATURES, measure_shapes
    from pipeline.pages.shape import write_shape_page  # It loads slowly, and --help does not need it.

    result = measure_shapes(
        args.masks,
        args.out,
        clinical=args.clinical,
        columns=args.columns,
        features=args.features or PAPER_FEATURES,
        spacing=args.spacing,
        only_largest=args.largest_component,
        seed=args.seed,
        draw=lambda found: write_shape_page(found, args.out),
    )
    for line in summary(result):
        say(line)
    say(f"Research only, not for clinical use. Open in a browser: {args.out / PAGE_NAME}")
    if args.json:
        print_json(
            {
                "out": str(args.out),
                "masks": {kind: len(shapes) for kind, shapes in result.shapes.items()},
                "agreement": [dataclasses.asdict(one) for one in result.agreements],
                "associations": {k: [dataclasses.asdict(one) for one in v] for k, v in result.associations.items()},
            }
        )
    return 0


def summary(result: ShapeResult) -> list[str]:
    """The lines that the command prints about a result."""
    from pipeline.pages.page import listed

    counts = ", ".join(f"{len(shapes)} {kind}" for kind, shapes in result.shapes.items())
    empty = sum(not shape.voxels for shapes in result.shapes.values() for shape in shapes.values())
    lines = [f"masks: {counts}" + (f"; {empty} empty, without features" if empty else "")]
    if result.unknown_spacing:
        lines.append(
            f"patients without a voxel size: {len(result.unknown_spacing)}; their features in mm are empty. "
            "Pass --spacing if you know it."
        )
    if result.given_spacing:
        lines.append(f"patients without a voxel size: {len(result.given_spacing)}; that of --spacing counts for them")
    if result.seen_in_training:
        lines.append(
            f"patients that the networks were trained on: {len(result.seen_in_training)}; their predicted masks do not "
            "show how masks of new patients behave"
        )
    for one in result.agreements:
        if one.spearman is None:
            continue
        lines.append(
            f"{one.feature}: rank correlation of predicted and true {one.spearman:.3f} ({one.patients} patients)"
        )
    if table := result.clinical:
        total = len({patient for shapes in result.shapes.values() for patient in shapes})
        lines.append(
            f"clinical table: {table.matched} of {total} patients found, columns tested: {len(table.columns)}, "
            f"skipped: {len(table.skipped)}"
        )
        lines += [f"not tested: {column}, which has {why}" for column, why in table.skipped.items()]
        if table.unmatched:
            lines.append(f"not in the clinical table: {listed(table.unmatched)}")
    for kind, found in result.associations.items():
        lines += [
            f"{kind}: {one.feature} and {one.column}: Fisher p {one.fisher_p:.2g} (false discovery rate "
            f"{one.fisher_q:.2g}), Kruskal-Wallis p {one.kruskal_p:.2g} ({one.patients} patients)"
            for one in found[:5]
        ]
    return lines


if __name__ == "__main__":
    sys.exit(run_cli(main))
