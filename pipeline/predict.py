"""Command line: volumes or slices without truth, and bundles -> masks, lesion volumes and, on request, more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import CommandParser, add_bundle_arguments, is_first_process, print_json, run_cli, say
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.manifest import MASK_SUFFIX, UNCERTAINTY_SUFFIX

if TYPE_CHECKING:
    from pipeline.model.predictions import PredictionResult


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = CommandParser(
        "predict",
        description="Lesion masks of volumes without truth, by one bundle or by the mean of several. Research only.",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="*",
        metavar="INPUT",
        help="FLAIR as NIfTI, MHA or NRRD, in any orientation; or three channels, pre-contrast, FLAIR, post-contrast. "
        "A folder of such files named as in BraTS or BIDS, of DICOM (or a zip of it), or of slices PATIENT_NUMBER.tif, "
        ".png or .jpg, one or several patients. Or a manifest or another Decathlon datalist, with or without labels",
    )
    parser.add_argument("--flair", type=Path, metavar="FILE", help="FLAIR, in place of INPUT")
    parser.add_argument("--pre", type=Path, metavar="FILE", help="pre-contrast T1 beside one FLAIR, on any grid")
    parser.add_argument("--post", type=Path, metavar="FILE", help="post-contrast T1 beside one FLAIR, on any grid")
    parser.add_argument("--series", help="SeriesNumber or SeriesInstanceUID of FLAIR, where DICOM does not tell it")
    add_bundle_arguments(parser, default="the three of this project")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder for NAME_mask.nii.gz, predictions.csv and predictions.json",
    )
    parser.add_argument(
        "--probability",
        action="store_true",
        help="write NAME_probability.nii.gz as well, float32, before threshold and component rule",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write NAME_uncertainty.nii.gz, the standard deviation over networks and flips, and into the table their "
        "agreement (mean DSC between their masks); needs --tta or several --bundle",
    )
    parser.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw figures/NAME/slice_NNN.png and figures/NAME.gif: the mask's contour red on FLAIR, beside it the "
        "uncertainty where asked for; slices with a voxel of the mask or with uncertainty. Also "
        "predictions.html, a page with a viewer (default: draw)",
    )
    parser.add_argument("--all-slices", action="store_true", help="--figures of slices with nothing in them, too")
    parser.add_argument("--all-components", action="store_true", help="keep every lesion, not the largest alone")
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="write NAME_seg.dcm of DICOM inputs as well; by its standard it holds the patient's name",
    )
    parser.add_argument("--allow-gaps", action="store_true", help="of slices: missing numbers are a warning")
    parser.add_argument(
        "--pseudonymise",
        type=Path,
        metavar="KEY",
        help="pseudonyms for the volumes' names in all that is written; KEY, a CSV of names and pseudonyms that must "
        "lie apart, is read and extended",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="go on with the same run that was stopped, or add patients to the inputs: what has its mask is kept. A "
        "mask that was changed since, or is of other options or another image, is refused without --overwrite",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every volume; write masks, table and summary."""
    args = arguments().parse_args(argv)
    if args.all_slices and not args.figures:
        raise PipelineError("--all-slices and --no-figures (expected one of them). Leave one out.")
    inputs = [*args.inputs, *([args.flair] if args.flair else [])]
    if not inputs:
        raise PipelineError("nothing to predict (expected INPUT or --flair FILE). Name a FLAIR volume or a folder.")
    from pipeline.model.bundle import DEFAULT_BUNDLES
    from pipeline.model.predictions import PREDICTIONS_NAME, predict_volumes, predictions_table

    result = predict_volumes(
        inputs,
        args.bundle or DEFAULT_BUNDLES,
        args.out,
        weights=args.weights,
        flips=args.tta,
        probability=args.probability,
        uncertainty=args.uncertainty,
        backend=args.backend,
        device=args.device,
        trust=args.trust,
        allow_gaps=args.allow_gaps,
        pseudonymise=args.pseudonymise,
        overwrite=args.overwrite,
        skip_existing=args.skip_existing,
        all_components=args.all_components,
        series=args.series,
        pre=args.pre,
        post=args.post,
        dicom_seg=args.dicom_seg,
        draw=lambda result: _draw(result, args.out, figures=args.figures, all_slices=args.all_slices),
    )
    say(predictions_table(result.predictions))
    say(f"Research only, not for clinical use. Masks and table: {args.out}")
    if not is_first_process():
        return 0  # the first one tells of all
    if args.json:
        print_json(json.loads((args.out / PREDICTIONS_NAME).read_bytes()))
    if result.faults:
        raise ManifestError({path: [message] for path, message in result.faults.items()})
    return 0


def _draw(result: PredictionResult, out: Path, *, figures: bool, all_slices: bool) -> None:
    """Remove pictures of other masks, and draw those of these where they are asked for."""
    from pipeline.model.predictions import FIGURES
    from pipeline.pages.figures import Case, draw_cases, remove_outdated
    from pipeline.pages.predictions import write_predictions_page

    cases = [
        Case(
            name=found.volume,
            image=result.images[found.volume],
            mask=out / f"{found.volume}{MASK_SUFFIX}",
            uncertainty=out / f"{found.volume}{UNCERTAINTY_SUFFIX}",
        )
        for found in result.predictions
    ]
    remove_outdated(cases, out / FIGURES)
    if figures:
        draw_cases(cases, out / FIGURES, all_slices=all_slices)
        page = write_predictions_page(out, result.images)
        say(f"figures: {out / FIGURES}; open in a browser: {page}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
