"""Command line: manifest + bundle(s) -> per-volume DSC table, summary, masks, and pictures on request."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bundle import add_arguments, load_bundle, load_bundles, one_each, refuse_single_pass, versions
from pipeline.curves import CURVES, read_events, write_curves
from pipeline.datalist import Manifest, Volume, read_manifest, select, verify_volume
from pipeline.errors import PipelineError, run_cli
from pipeline.figures import DSC_FIGURE, FIGURES, Case, draw_cases, remove_outdated
from pipeline.files import link_or_copy
from pipeline.records import SECTIONS, VolumeScore
from pipeline.scores import MAPS, MASKS, SUMMARY, VOLUMES, table, write_results
from pipeline.scripts.files import locked, write_durably

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

    FoldBundles = dict[int | None, Bundle]

PROTOCOLS = {
    "native": "every voxel of the native volume; the bundle's own component rule",
    "reference": "first and last slice left out, largest 3-D component, as the reference program scores",
}


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description="Per-volume DSC of one bundle, or of the mean of several, on a manifest. Research only.",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json or its folder")
    add_arguments(parser)
    parser.add_argument(
        "--folds",
        type=Path,
        action="append",
        default=[],
        help="folder of fold_0, fold_1, ... in place of --weights, one per --bundle: each patient is predicted by the "
        "training that held its fold out, patients without a fold by the average of all",
    )
    parser.add_argument(
        "--fold",
        type=int,
        help="this fold's patients alone; of --folds then only fold_K is needed (default: all folds)",
    )
    parser.add_argument(
        "--split",
        choices=[*SECTIONS, "all"],
        help="default: validation; with --folds or --fold all, one table out of fold",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for scores.csv, summary.json, masks/ (always whole volumes), volumes/ (images and labels, "
        "links where the disk has them) and the training's curves: all that pipeline.report needs",
    )
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="native",
        help="; ".join(f"{name}: {meaning}" for name, meaning in PROTOCOLS.items()),
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write the standard deviation over networks and flips as uncertainty/PATIENT_uncertainty.nii.gz; needs "
        "--tta or several --bundle",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="draw figures/dsc.png, and for each patient figures/PATIENT/slice_NNN.png and figures/PATIENT.gif: "
        "prediction red, truth green, both yellow, on FLAIR",
    )
    parser.add_argument("--all-slices", action="store_true", help="--figures of slices with nothing in them, too")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap interval (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict and score a section; write the table, the summary and the masks.

    Raises:
        PipelineError: what the caller can mend, each with its remedy; ``run_cli`` prints it and exits with 2.
    """
    args = arguments().parse_args(argv)
    args.given = list(sys.argv[1:] if argv is None else argv)
    one_each("--weights", args.weights, args.bundle)
    one_each("--folds", args.folds, args.bundle)
    if args.weights and args.folds:
        raise PipelineError(
            "--weights and --folds together (expected one of them). The folds hold weights of their own."
        )
    if args.all_slices and not args.figures:
        raise PipelineError("--all-slices without --figures (expected both). Pass --figures too.")
    args.split = args.split or ("all" if args.folds or args.fold is not None else "validation")
    if args.seed < 0:
        raise PipelineError(f"--seed {args.seed} (expected 0 or more).")
    manifest = read_manifest(args.manifest)
    volumes = _of_fold(select(manifest, args.split), manifest, args.fold)
    for volume in volumes:
        verify_volume(volume)
    groups: list[FoldBundles]
    if args.folds:
        groups = [
            fold_bundles(*pair, manifest.folds, args.backend, args.fold, trust=args.trust)
            for pair in zip(args.bundle, args.folds, strict=True)
        ]
    else:
        groups = [{None: bundle} for bundle in load_bundles(args.bundle, args.weights, args.backend, trust=args.trust)]
    if args.uncertainty:
        for volume in volumes:
            refuse_single_pass(len(predictors(groups, volume)), flips=args.tta)
    provenance = _provenance(args, manifest, groups, volumes)
    _refuse_other_results(args.out / SUMMARY, provenance)
    if manifest.raw.get("options", {}).get("pseudonymised") and any(
        bundle.training_patients and bundle.training.get("manifest_sha256") != manifest.sha256
        for group in groups
        for bundle in group.values()
    ):
        print(
            "warning: these patients have pseudonyms, and the weights come from another manifest: whether any of them "
            "was trained on is not known"
        )
    with locked(args.out, (MASKS, VOLUMES, MAPS, FIGURES)):
        return _score(args, groups, volumes, provenance)


def _score(
    args: argparse.Namespace, groups: Sequence[FoldBundles], volumes: Sequence[Volume], provenance: dict[str, Any]
) -> int:
    """Predict, score and write what was asked for."""
    if (args.out / SUMMARY).is_file():
        print(f"{args.out}: the results that are there are replaced; pictures and maps of other masks go")
    for line in dict.fromkeys(bundle.as_trained() for group in groups for bundle in group.values()):
        print(line)
    seen = provenance["seen_in_training"]
    if seen and (args.folds or args.split not in ("training", "all")):
        print(
            f"warning: {len(seen)} of {len(volumes)} patients were trained on, these scores are not of unseen patients:"
        )
        print(f"  {', '.join(seen)}")
    # Until the end the folder says that it is not complete: masks of two runs would pass for one's.
    write_durably(args.out / SUMMARY, (json.dumps(provenance, indent=2) + "\n").encode())
    scores = score_volumes(groups, volumes, args.protocol, flips=args.tta, out=args.out, uncertainty=args.uncertainty)
    _keep_curves(args, groups)
    write_results(args.out, scores, provenance)
    cases = _cases(args.out, volumes)
    remove_outdated(cases, args.out / FIGURES)
    if args.figures:
        _draw(args.out / FIGURES, cases, scores, all_slices=args.all_slices, seed=args.seed)
    print(table(scores, args.seed))
    print(f"protocol {args.protocol}: {PROTOCOLS[args.protocol]}. Research only, not for clinical use.")
    print(f"results: {args.out}; next: python -m pipeline.report {shlex.quote(str(args.out))}")
    return 0


def _keep_curves(args: argparse.Namespace, groups: Sequence[FoldBundles]) -> None:
    """Curves of the trainings whose event files lie beside the weights, for the report."""
    curves = {}
    for number, (folder, group) in enumerate(zip(args.bundle, groups, strict=True)):
        for fold, bundle in group.items():
            weights = args.folds[number] / f"fold_{fold}" if args.folds else None
            weights = weights or (args.weights[number].parent if args.weights else folder / "models")
            name = bundle.name if fold is None else f"{bundle.name}, fold {fold}"
            name = f"{name} ({number + 1})" if name in curves else name
            steps = int(bundle.training.get("config", {}).get("steps_per_epoch", 1))
            places = [weights] if args.folds or args.weights else [weights, folder / "eval"]
            curves[name] = next((found for found in (read_events(place, steps) for place in places) if found), {})
    write_curves(args.out / CURVES, {name: tags for name, tags in curves.items() if tags})


def _cases(out: Path, volumes: Sequence[Volume]) -> list[Case]:
    cases = []
    for volume in volumes:
        kept = out / MAPS / f"{volume.patient}_uncertainty.nii.gz"
        cases.append(
            Case(
                name=volume.patient,
                image=volume.image,
                mask=out / MASKS / f"{volume.patient}_mask.nii.gz",
                label=volume.label,
                uncertainty=kept if kept.is_file() else None,
            )
        )
    return cases


def _draw(figures: Path, cases: Sequence[Case], scores: Sequence[VolumeScore], *, all_slices: bool, seed: int) -> None:
    """The chart of DSC, and each patient's slices."""
    from pipeline.metrics import bootstrap_interval
    from pipeline.plots import dsc_png

    dsc = {score.patient: score.dsc for score in scores if score.dsc is not None}
    if dsc:
        without = len(scores) - len(dsc)
        picture = dsc_png(dsc, bootstrap_interval(list(dsc.values()), seed), without)
        write_durably(figures / DSC_FIGURE, picture)
    drawn = draw_cases(cases, figures, all_slices=all_slices)
    there = f", {len(cases) - drawn} were there" if drawn < len(cases) else ""
    print(f"figures: {figures} ({drawn} of {len(cases)} patients drawn{there})")


def _of_fold(volumes: Sequence[Volume], manifest: Manifest, fold: int | None) -> tuple[Volume, ...]:
    """The volumes of one fold, all of them without one.

    Raises:
        PipelineError: the manifest has no such fold, or the section no patient of it.
    """
    if fold is None:
        return tuple(volumes)
    if fold not in manifest.folds:
        numbers = ", ".join(map(str, manifest.folds)) or "none: build the manifest with --folds K"
        raise PipelineError(f"--fold {fold} (the manifest's folds: {numbers}).")
    chosen = tuple(volume for volume in volumes if volume.fold == fold)
    if not chosen:
        raise PipelineError(f"--fold {fold}: no patient of it in this --split. Leave --split out for all of the fold.")
    return chosen


def fold_bundles(
    folder: Path, runs: Path, folds: Sequence[int], backend: str, only: int | None = None, *, trust: bool = False
) -> FoldBundles:
    """A bundle with the weights of each fold of a cross-validation.

    Args:
        folder: of the bundle.
        runs: holds ``fold_K/model.pt``.
        folds: of the manifest.
        backend: as for ``load_bundle``.
        only: this fold alone; the others need not be there.
        trust: as for ``load_bundle``.

    Raises:
        PipelineError: not exactly the folds wanted in ``fold_K/model.pt``, or weights that do not fit.
    """
    found = {int(path.parent.name[5:]): path for path in runs.glob("fold_*/model.pt") if path.parent.name[5:].isdigit()}
    if only is not None and only in found:
        return {only: load_bundle(folder, found[only], backend, trust=trust)}
    if only is not None or sorted(found) != list(folds) or not found:
        has, wanted = (", ".join(map(str, sorted(numbers))) or "none" for numbers in (found, folds))
        raise PipelineError(
            f"{runs}: holds weights of folds {has} (the manifest's: {wanted}). Train every fold: "
            f"python -m pipeline.train --fold all --out {runs}, on a manifest built with --folds K."
        )
    return {fold: load_bundle(folder, found[fold], backend, trust=trust) for fold in folds}


def predictors(groups: Sequence[FoldBundles], volume: Volume) -> list[Bundle]:
    """The bundles whose probabilities are averaged for a volume.

    Args:
        groups: for each bundle given, fold -> its weights; ``{None: bundle}`` without folds.
        volume: of the manifest whose folds they are.
    """
    chosen: list[Bundle] = []
    for group in groups:
        if None in group or volume.fold is None:
            chosen += group.values()
        else:
            chosen.append(group[volume.fold])
    return chosen


def score_volumes(
    groups: Sequence[FoldBundles],
    volumes: Sequence[Volume],
    protocol: str,
    *,
    flips: bool,
    out: Path | None,
    uncertainty: bool = False,
) -> list[VolumeScore]:
    """Predict and score volumes; while a network works on one, the next is read and the one before is scored.

    Args:
        groups: as for ``predictors``; threshold and component rule are those of the first bundle.
        volumes: of a manifest.
        protocol: a key of ``PROTOCOLS``.
        flips: average with the prediction of the mirrored volume.
        out: folder for ``masks/<patient>_mask.nii.gz`` of the native protocol's mask, ``volumes/`` with image and label
            and, where asked, ``uncertainty/``; or None.
        uncertainty: write the map; one of an earlier run is removed without.

    Raises:
        PipelineError: a volume that cannot be read or a prediction that is not finite.
    """
    from pipeline.inference import disagreement, mask_from_probability, mean_probability, overlapped, predict_passes
    from pipeline.metrics import pass_agreement, reference_view, reliability, score_volume
    from pipeline.volumes import load_label, save_map, save_mask

    def score(volume: Volume) -> VolumeScore:
        bundles = predictors(groups, volume)
        passes = predict_passes(bundles, volume.image, flips=flips)
        probability = mean_probability(passes)
        mask = mask_from_probability(bundles[0], probability)
        truth = load_label(volume.label)
        if out is not None:
            save_mask(mask, out / MASKS / f"{volume.patient}_mask.nii.gz", volume.image)
            # The label is copied: people correct labels in place, and a link would be the manifest's own.
            link_or_copy(volume.image, out / VOLUMES / f"{volume.patient}_image.nii.gz")
            write_durably(out / VOLUMES / f"{volume.patient}_label.nii.gz", volume.label.read_bytes())
            kept = out / MAPS / f"{volume.patient}_uncertainty.nii.gz"
            if uncertainty:
                save_map(disagreement(passes), kept, volume.image)
            else:
                kept.unlink(missing_ok=True)
        scored = reference_view(probability, truth) if protocol == "reference" else (mask, truth)
        agreement = pass_agreement([mask_from_probability(bundles[0], one) for one in passes]) if uncertainty else None
        return replace(
            score_volume(volume.patient, *scored), reliability=reliability(probability, truth), agreement=agreement
        )

    return overlapped(score, volumes, "evaluate")


def _provenance(
    args: argparse.Namespace, manifest: Manifest, groups: Sequence[FoldBundles], volumes: Sequence[Volume]
) -> dict[str, Any]:
    seen = [
        volume.patient
        for volume in volumes
        if any(volume.patient in bundle.training_patients for bundle in predictors(groups, volume))
    ]
    return {
        "command": _command(args.given),
        "protocol": args.protocol,
        "split": args.split,
        "fold": args.fold,
        "tta": args.tta,
        "bundles": [
            {**bundle.provenance(), **({} if fold is None else {"fold": fold})}
            for group in groups
            for fold, bundle in group.items()
        ],
        "manifest_sha256": manifest.sha256,
        "seen_in_training": seen,
        "seed": args.seed,
        "versions": versions(args.backend),
        "backend": args.backend,
        "device": str(next(iter(groups[0].values())).device),
    }


def _command(given: Sequence[str]) -> str:
    """The command as it was given, but for ``--out``; of paths out of the working folder the last part."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=True)
    parser.add_argument("--out")
    kept = []
    for text in parser.parse_known_args(given)[1]:
        option, equals, value = text.rpartition("=")
        outside = Path(value).is_absolute() or ".." in Path(value).parts
        kept.append(option + equals + (Path(value).name if outside else value))
    return shlex.join(["python", "-m", "pipeline.evaluate", *kept])


def _refuse_other_results(summary: Path, provenance: dict[str, Any]) -> None:
    """Keep masks and table of one folder about the same patients."""
    if summary.parent.exists() and not summary.parent.is_dir():
        raise PipelineError(
            f"{summary.parent}: is a file (expected a folder, or a name for a new one). Choose another --out."
        )
    try:
        earlier = json.loads(summary.read_bytes())
        same = all(earlier.get(key) == provenance[key] for key in ("split", "fold", "manifest_sha256"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError):
        same = False
    if not same:
        raise PipelineError(
            f"{summary.parent}: holds the results of another split, fold or manifest. Choose another --out, or "
            "delete them."
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
