"""The command ``lgg-flair evaluate``: score bundles on a manifest, and write scores, summary, masks and pictures."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import PROGRAM, CommandParser, add_bundle_arguments, print_json, run_cli, say
from pipeline.errors import PipelineError
from pipeline.files import FIGURES, MAP_FOLDER, MASK_FOLDER
from pipeline.scoring.protocols import PROTOCOLS
from pipeline.scoring.results import scores_table
from pipeline.scripts.files import write_durably
from pipeline.scripts.manifest import MASK_SUFFIX, SECTIONS, UNCERTAINTY_SUFFIX

if TYPE_CHECKING:
    from pipeline.scoring.evaluation import EvaluationResult


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = CommandParser(
        "evaluate",
        description="Score one bundle, or the mean of several, on patients with true masks: DSC of each volume. "
        "Research only.",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        required=True,
        help="manifest.json or its folder; or another Decathlon datalist of NIfTI images and labels, where the names "
        "of the image files become the patients' names",
    )
    add_bundle_arguments(parser)
    parser.add_argument(
        "--folds",
        type=Path,
        action="append",
        default=[],
        help="folder of the trainings fold_0, fold_1, ..., one for each --bundle, in place of --weights; each patient "
        "is predicted by the training that did not use the patient, patients without a fold by the average of all",
    )
    parser.add_argument(
        "--fold",
        type=int,
        help="score only the patients of this fold K; --folds then needs only fold_K (default: all folds)",
    )
    parser.add_argument(
        "--split",
        choices=[*SECTIONS, "all"],
        help="section of the manifest to score (default: validation; with --folds or --fold: all, in one table)",
    )
    parser.add_argument(
        "--patients", nargs="+", default=[], metavar="ID", help="score only these patients of the section"
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="continue the same evaluation after it was stopped"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help=f"output folder with all that {PROGRAM} report needs: scores.csv, summary.json, masks/ (whole volumes), "
        "volumes/ (images, as links if the disk has links, and copies of labels) and the curves of the training",
    )
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="native",
        help="rules of scoring; " + "; ".join(f"{name}: {meaning}" for name, meaning in PROTOCOLS.items()),
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write uncertainty/PATIENT_uncertainty.nii.gz, the standard deviation over networks and flips; needs "
        "--tta or several --bundle",
    )
    parser.add_argument(
        "--per-slice",
        action="store_true",
        help="also write slices.csv: patient, slice (from 1 upwards), tp, fp, fn, dsc",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="draw figures/dsc.png, and for each patient figures/PATIENT/slice_NNN.png and figures/PATIENT.gif, where "
        "the prediction is red, the truth green and both together yellow on FLAIR",
    )
    parser.add_argument(
        "--all-slices", action="store_true", help="draw every slice, also those without mask and truth; needs --figures"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the bootstrap interval (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict and score one section of a manifest; write the table, the summary and the masks.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: An option or a file is wrong; the message says what to do.
    """
    args = arguments().parse_args(argv)
    if args.all_slices and not args.figures:
        raise PipelineError("--all-slices without --figures (expected both). Pass --figures too.")
    from pipeline.model.bundle import DEFAULT_BUNDLES
    from pipeline.scoring.evaluation import evaluate_volumes

    result = evaluate_volumes(
        args.manifest,
        args.bundle or DEFAULT_BUNDLES,
        args.out,
        weights=args.weights,
        folds=args.folds,
        fold=args.fold,
        split=args.split,
        patients=args.patients,
        skip_existing=args.skip_existing,
        protocol=args.protocol,
        flips=args.tta,
        uncertainty=args.uncertainty,
        per_slice=args.per_slice,
        backend=args.backend,
        device=args.device,
        trust=args.trust,
        seed=args.seed,
        command=_command(sys.argv[1:] if argv is None else argv),
        draw=lambda result: _draw(result, args.out, figures=args.figures, all_slices=args.all_slices),
    )
    say(scores_table(result.scores, result.summary))
    say(f"protocol {args.protocol}: {PROTOCOLS[args.protocol]}. Research only, not for clinical use.")
    say(f"results: {args.out}; next: {PROGRAM} report {shlex.quote(str(args.out))}")
    if args.json:
        print_json({**result.summary, "scores": [asdict(score) for score in result.scores]})
    return 0


def _draw(result: EvaluationResult, out: Path, *, figures: bool, all_slices: bool) -> None:
    """Remove outdated pictures; draw the chart of DSC and the slices of each patient if ``figures`` is true."""
    from pipeline.pages.figures import DSC_FIGURE, Case, draw_cases, remove_outdated

    cases = [
        Case(
            name=volume.patient,
            image=volume.image,
            mask=out / MASK_FOLDER / f"{volume.patient}{MASK_SUFFIX}",
            label=volume.label,
            uncertainty=out / MAP_FOLDER / f"{volume.patient}{UNCERTAINTY_SUFFIX}",
        )
        for volume in result.volumes
    ]
    folder = out / FIGURES
    remove_outdated(cases, folder)
    if not figures:
        return
    dsc = {score.patient: score.dsc for score in result.scores if score.dsc is not None}
    if dsc:
        from pipeline.pages.charts import dsc_png

        low, high = result.summary["dsc_mean_95"]
        write_durably(folder / DSC_FIGURE, dsc_png(dsc, (low, high), len(result.scores) - len(dsc)))
    drawn = draw_cases(cases, folder, all_slices=all_slices)
    there = f", {len(cases) - drawn} existed already" if drawn < len(cases) else ""
    say(f"figures: {folder} ({drawn} of {len(cases)} patients drawn{there})")


def _command(given: Sequence[str]) -> str:
    """The command for the summary: without ``--out``, and paths outside the working folder by their last part only."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=True)
    parser.add_argument("-o", "--out")
    kept = []
    for text in parser.parse_known_args(given)[1]:
        option, equals, value = text.rpartition("=")
        outside = Path(value).is_absolute() or ".." in Path(value).parts
        kept.append(option + equals + (Path(value).name if outside else value))
    return shlex.join(["python", "-m", "pipeline.evaluate", *kept])


if __name__ == "__main__":
    sys.exit(run_cli(main))
