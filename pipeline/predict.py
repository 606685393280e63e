"""The command ``lgg-flair predict``: FLAIR images in, masks and a table of lesion volumes out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import CommandParser, add_bundle_arguments, is_first_process, print_json, run_cli, say
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import FIGURES
from pipeline.scripts.manifest import MASK_SUFFIX, UNCERTAINTY_SUFFIX

if TYPE_CHECKING:
    from pipeline.model.predictions import PredictionResult


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = CommandParser(
        "predict",
        description="Segment FLAIR images with one bundle, or with the mean of several. Research only.",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="*",
        metavar="INPUT",
        help="a FLAIR image (NIfTI, MHA or NRRD, any orientation), or an image with the channels pre-contrast, FLAIR, "
        "post-contrast; a folder of one or several patients: such files named as in BraTS or BIDS, DICOM (or a zip of "
        "it), or slices PATIENT_NUMBER.tif, .png or .jpg; a manifest or another Decathlon datalist, labels not needed",
    )
    parser.add_argument("--flair", type=Path, metavar="FILE", help="FLAIR image, another way to give INPUT")
    parser.add_argument(
        "--pre",
        type=Path,
        metavar="FILE",
        help="pre-contrast T1 of the same patient, for one FLAIR image; its grid may differ",
    )
    parser.add_argument(
        "--post",
        type=Path,
        metavar="FILE",
        help="post-contrast T1 of the same patient, for one FLAIR image; its grid may differ",
    )
    parser.add_argument(
        "--series", help="SeriesNumber or SeriesInstanceUID of the FLAIR series, if the DICOM headers leave it unclear"
    )
    add_bundle_arguments(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="output folder, for NAME_mask.nii.gz, predictions.csv and predictions.json",
    )
    parser.add_argument(
        "--probability",
        action="store_true",
        help="also write NAME_probability.nii.gz: float32, 0 to 1, before the threshold and the component rule",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write NAME_uncertainty.nii.gz, the standard deviation over networks and flips; needs --tta or "
        "several --bundle",
    )
    parser.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw predictions.html, a page with a viewer, and pictures of the slices with mask or uncertainty, "
        "figures/NAME/slice_NNN.png and figures/NAME.gif: the contour of the mask is red on FLAIR, the uncertainty is "
        "beside it (default: draw)",
    )
    parser.add_argument(
        "--all-slices", action="store_true", help="draw every slice, also those without mask and uncertainty"
    )
    parser.add_argument(
        "--all-components", action="store_true", help="keep every connected region of the mask, not only the largest"
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write NAME_seg.dcm for DICOM inputs; as the DICOM standard asks, it holds the patient's name",
    )
    parser.add_argument(
        "--allow-gaps", action="store_true", help="warn of missing slice numbers, and do not refuse the patient"
    )
    parser.add_argument(
        "--pseudonymise",
        type=Path,
        metavar="KEY",
        help="replace names by pseudonyms in all output; KEY is a CSV of names and pseudonyms in a separate folder, "
        "which is read and extended",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="keep the masks that exist and predict the other patients, to continue a run or to add patients. Name the "
        "earlier inputs again: the tables and pictures are those of this run's inputs. A mask that was changed, or "
        "belongs to other options or another image, is refused unless --overwrite is given",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every volume; write masks, table and summary.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        ManifestError: Some patients were refused; all others are predicted.
        PipelineError: An option or an input is wrong; the message says what to do.
    """
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
        return 0  # The first process reports the results of all.
    if args.json:
        print_json(json.loads((args.out / PREDICTIONS_NAME).read_bytes()))
    if result.faults:
        raise ManifestError({path: [message] for path, message in result.faults.items()})
    return 0


def _draw(result: PredictionResult, out: Path, *, figures: bool, all_slices: bool) -> None:
    """Remove outdated pictures, and draw new ones if ``figures`` is true."""
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
