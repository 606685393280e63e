"""Volumes of a manifest predicted and scored, with all that a report needs kept beside the scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cohort.manifest import Manifest, Volume, read_manifest, select, verify_volume
from pipeline.errors import PipelineError
from pipeline.files import link_or_copy, path_list, refuse_file
from pipeline.model.backends import TORCH
from pipeline.model.bundle import load_bundle, load_bundles, refuse_single_pass, refuse_unequal, versions
from pipeline.model.predictions import FIGURES
from pipeline.scoring.curves import CURVES_NAME, read_events, write_curves
from pipeline.scoring.protocols import refuse_unknown
from pipeline.scoring.results import (
    MAP_FOLDER,
    MASK_FOLDER,
    SUMMARY_NAME,
    VolumeScore,
    write_scores,
    write_summary,
)
from pipeline.scripts.files import locked, write_durably
from pipeline.scripts.manifest import IMAGE_SUFFIX, LABEL_SUFFIX, MASK_SUFFIX, UNCERTAINTY_SUFFIX, VOLUMES

if TYPE_CHECKING:
    from pipeline.model.bundle import Bundle

    FoldBundles = Mapping[int | None, Bundle]


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated; the fields are the arguments of ``evaluate_volumes``.

    Args:
        command: The command line that asks, for the summary.
    """

    manifest: Path
    bundles: tuple[Path, ...]
    out: Path
    weights: tuple[Path, ...] = ()
    folds: tuple[Path, ...] = ()
    fold: int | None = None
    split: str | None = None
    protocol: str = "native"
    flips: bool = False
    uncertainty: bool = False
    backend: str = TORCH
    trust: bool = False
    seed: int = 0
    command: str = ""


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation that has been checked and whose networks are loaded.

    Args:
        request: What was asked for.
        groups: For each bundle, fold -> the bundle with that fold's weights; ``{None: bundle}`` without folds.
        volumes: The volumes to be scored.
        provenance: What the figures come from; the summary without its statistics.
        notes: Lines that a person wants to read before the scores.
    """

    request: EvaluationRequest
    groups: tuple[FoldBundles, ...]
    volumes: tuple[Volume, ...]
    provenance: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of an evaluation.

    Args:
        scores: One score for each volume, in the manifest's order.
        summary: The content of ``summary.json``: provenance and statistics, such as ``dsc_mean``.
        volumes: The volumes that were scored.
    """

    scores: tuple[VolumeScore, ...]
    summary: dict[str, Any]
    volumes: tuple[Volume, ...]


def evaluate_volumes(
    manifest: str | Path,
    bundles: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    folds: Sequence[str | Path] = (),
    fold: int | None = None,
    split: str | None = None,
    protocol: str = "native",
    flips: bool = False,
    uncertainty: bool = False,
    backend: str = TORCH,
    trust: bool = False,
    seed: int = 0,
) -> EvaluationResult:
    """Predict and score the volumes of a manifest; write scores, summary, masks and maps.

    Pictures that an earlier evaluation drew in the folder are removed: they are of other masks.

    Args:
        manifest: ``manifest.json`` or its folder.
        bundles: The bundles' folders; the probabilities of several are averaged.
        out: The folder of the results, as ``python -m pipeline.evaluate`` writes it.
        weights: One weights file for each bundle, or none for the bundles' own.
        folds: One folder of ``fold_K/model.pt`` for each bundle, or none.
        fold: Evaluate the patients of this fold alone; None for all.
        split: The section, or all; None for validation, or for all where folds are asked for.
        protocol: A key of ``PROTOCOLS``.
        flips: Average with the prediction of the left-right mirrored volume.
        uncertainty: Also write uncertainty maps and each volume's agreement.
        backend: A key of ``BACKENDS``.
        trust: Also run bundles that are not this project's: their configs can run any code.
        seed: Seed of the bootstrap interval, 0 or more.

    Returns:
        The scores of all volumes and their summary.

    Raises:
        PipelineError: An option, a bundle, a volume or the folder cannot be used; the message says which.

    Example:
        >>> result = evaluate_volumes("data_manifest", "bundles/basic_unet", "runs/basic_unet")
        >>> round(result.summary["dsc_mean"], 4)
        0.9084
    """
    request = EvaluationRequest(
        Path(manifest),
        path_list(bundles),
        Path(out),
        weights=path_list(weights),
        folds=path_list(folds),
        fold=fold,
        split=split,
        protocol=protocol,
        flips=flips,
        uncertainty=uncertainty,
        backend=backend,
        trust=trust,
        seed=seed,
    )
    evaluation = prepare_evaluation(request)
    with lock_results(request.out):
        shutil.rmtree(request.out / FIGURES, ignore_errors=True)
        return run_evaluation(evaluation)


def lock_results(out: Path) -> AbstractContextManager[None]:
    """Keep a second evaluation out of a folder of results while one writes there."""
    return locked(out, (MASK_FOLDER, VOLUMES, MAP_FOLDER, FIGURES))


def prepare_evaluation(request: EvaluationRequest) -> PreparedEvaluation:
    """Check a request and load its networks; nothing is written."""
    refuse_unequal("--weights", request.weights, request.bundles)
    refuse_unequal("--folds", request.folds, request.bundles)
    if request.weights and request.folds:
        raise PipelineError(
            "--weights and --folds together (expected one of them). The folds hold weights of their own."
        )
    refuse_unknown(request.protocol)
    if request.seed < 0:
        raise PipelineError(f"--seed {request.seed} (expected 0 or more).")
    out_of_fold = bool(request.folds) or request.fold is not None
    request = replace(request, split=request.split or ("all" if out_of_fold else "validation"))
    manifest = read_manifest(request.manifest)
    volumes = _of_fold(select(manifest, request.split or ""), manifest, request.fold)
    for volume in volumes:
        verify_volume(volume)
    groups = _loaded(request, manifest)
    if request.uncertainty:
        refuse_single_pass(min(len(bundles_for(groups, volume)) for volume in volumes), flips=request.flips)
    provenance = _provenance(request, manifest, groups, volumes)
    _refuse_other_results(request.out / SUMMARY_NAME, provenance)
    return PreparedEvaluation(
        request, groups, volumes, provenance, _notes(request, manifest, groups, volumes, provenance)
    )


def run_evaluation(evaluation: PreparedEvaluation) -> EvaluationResult:
    """Predict and score; write ``scores.csv``, ``summary.json``, masks, volumes, maps and training curves.

    While a network works on one volume, the next is read and the one before is scored. Until the end the summary has no
    statistics, which says that the folder is not complete.
    """
    from pipeline.model.predictor import overlapped
    from pipeline.scoring.statistics import summarise

    request = evaluation.request
    _refuse_other_results(request.out / SUMMARY_NAME, evaluation.provenance)  # again, now that no other run writes
    write_summary(request.out, evaluation.provenance)
    scores = overlapped(lambda volume: _scored(evaluation, volume), evaluation.volumes, "evaluate")
    write_curves(request.out / CURVES_NAME, _training_curves(evaluation))
    write_scores(request.out, scores)
    summary = {**evaluation.provenance, **summarise(scores, request.seed)}
    write_summary(request.out, summary)
    return EvaluationResult(tuple(scores), summary, evaluation.volumes)


def bundles_for(groups: Sequence[FoldBundles], volume: Volume) -> list[Bundle]:
    """The bundles whose probabilities are averaged for a volume."""
    chosen: list[Bundle] = []
    for group in groups:
        if None in group or volume.fold is None:
            chosen += group.values()
        else:
            chosen.append(group[volume.fold])
    return chosen


def load_folds(
    bundle: Path,
    runs: Path,
    folds: Sequence[int],
    backend: str = TORCH,
    *,
    only: int | None = None,
    trust: bool = False,
) -> FoldBundles:
    """A bundle with the weights of each fold of a cross-validation."""
    found = {int(path.parent.name[5:]): path for path in runs.glob("fold_*/model.pt") if path.parent.name[5:].isdigit()}
    wanted = list(folds) if only is None else [only]
    if not found or (sorted(found) != wanted if only is None else only not in found):
        has, expected = (", ".join(map(str, sorted(numbers))) or "none" for numbers in (found, folds))
        raise PipelineError(
            f"{runs}: holds weights of folds {has} (the manifest's: {expected}). Train every fold: "
            f"python -m pipeline.train --fold all --out {runs}, on a manifest built with --folds K."
        )
    return {fold: load_bundle(bundle, found[fold], backend, trust=trust) for fold in wanted}


def _loaded(request: EvaluationRequest, manifest: Manifest) -> tuple[FoldBundles, ...]:
    if request.folds:
        pairs = zip(request.bundles, request.folds, strict=True)
        return tuple(
            load_folds(bundle, runs, manifest.folds, request.backend, only=request.fold, trust=request.trust)
            for bundle, runs in pairs
        )
    bundles = load_bundles(request.bundles, request.weights, request.backend, trust=request.trust)
    return tuple({None: bundle} for bundle in bundles)


def _scored(evaluation: PreparedEvaluation, volume: Volume) -> VolumeScore:
    """Predict one volume, keep what a report needs of it, and score it."""
    from pipeline.imaging.nifti import load_label
    from pipeline.model.predictor import Predictor, save_prediction
    from pipeline.scoring.metrics import reliability, score_volume
    from pipeline.scoring.protocols import view

    request, out, patient = evaluation.request, evaluation.request.out, volume.patient
    bundles = bundles_for(evaluation.groups, volume)
    prediction = Predictor(bundles, flips=request.flips, uncertainty=request.uncertainty).predict(volume.image)
    truth = load_label(volume.label)
    save_prediction(
        prediction,
        volume.image,
        out / MASK_FOLDER / f"{patient}{MASK_SUFFIX}",
        probability=None,
        uncertainty=out / MAP_FOLDER / f"{patient}{UNCERTAINTY_SUFFIX}",
    )
    # The label is copied: people correct labels in place, and a link would be the manifest's own.
    link_or_copy(volume.image, out / VOLUMES / f"{patient}{IMAGE_SUFFIX}")
    write_durably(out / VOLUMES / f"{patient}{LABEL_SUFFIX}", volume.label.read_bytes())
    score = score_volume(patient, *view(request.protocol, prediction.mask, prediction.probability, truth))
    return replace(score, reliability=reliability(prediction.probability, truth), agreement=prediction.agreement)


def _training_curves(evaluation: PreparedEvaluation) -> dict[str, Any]:
    """Curves of the trainings whose event files lie beside the weights."""
    request = evaluation.request
    curves: dict[str, Any] = {}
    for number, (folder, group) in enumerate(zip(request.bundles, evaluation.groups, strict=True)):
        for fold, bundle in group.items():
            if request.folds:
                places = [request.folds[number] / f"fold_{fold}"]
            elif request.weights:
                places = [request.weights[number].parent]
            else:
                places = [folder / "models", folder / "eval"]
            name = bundle.name if fold is None else f"{bundle.name}, fold {fold}"
            name = f"{name} ({number + 1})" if name in curves else name
            steps = int(bundle.training.get("config", {}).get("steps_per_epoch", 1))
            curves[name] = next((found for found in (read_events(place, steps) for place in places) if found), {})
    return {name: tags for name, tags in curves.items() if tags}


def _of_fold(volumes: Sequence[Volume], manifest: Manifest, fold: int | None) -> tuple[Volume, ...]:
    if fold is None:
        return tuple(volumes)
    if fold not in manifest.folds:
        numbers = ", ".join(map(str, manifest.folds)) or "none: build the manifest with --folds K"
        raise PipelineError(f"--fold {fold} (the manifest's folds: {numbers}).")
    chosen = tuple(volume for volume in volumes if volume.fold == fold)
    if not chosen:
        raise PipelineError(f"--fold {fold}: no patient of it in this --split. Leave --split out for all of the fold.")
    return chosen


def _notes(
    request: EvaluationRequest,
    manifest: Manifest,
    groups: Sequence[FoldBundles],
    volumes: Sequence[Volume],
    provenance: Mapping[str, Any],
) -> tuple[str, ...]:
    bundles = [bundle for group in groups for bundle in group.values()]
    notes = []
    if manifest.raw.get("options", {}).get("pseudonymised") and any(
        bundle.training_patients and bundle.training.get("manifest_sha256") != manifest.sha256 for bundle in bundles
    ):
        notes.append(
            "warning: these patients have pseudonyms, and the weights come from another manifest: whether any of them "
            "was trained on is not known"
        )
    if (request.out / SUMMARY_NAME).is_file():
        notes.append(f"{request.out}: the results that are there are replaced; pictures and maps of other masks go")
    notes += dict.fromkeys(bundle.as_trained() for bundle in bundles)
    seen = provenance["seen_in_training"]
    if seen and (request.folds or request.split not in ("training", "all")):
        notes.append(
            f"warning: {len(seen)} of {len(volumes)} patients were trained on, these scores are not of unseen patients:"
        )
        notes.append(f"  {', '.join(seen)}")
    return tuple(notes)


def _provenance(
    request: EvaluationRequest, manifest: Manifest, groups: Sequence[FoldBundles], volumes: Sequence[Volume]
) -> dict[str, Any]:
    seen = [
        volume.patient
        for volume in volumes
        if any(volume.patient in bundle.training_patients for bundle in bundles_for(groups, volume))
    ]
    return {
        "command": request.command,
        "protocol": request.protocol,
        "split": request.split,
        "fold": request.fold,
        "tta": request.flips,
        "bundles": [
            {**bundle.provenance(), **({} if fold is None else {"fold": fold})}
            for group in groups
            for fold, bundle in group.items()
        ],
        "manifest_sha256": manifest.sha256,
        "seen_in_training": seen,
        "seed": request.seed,
        "versions": versions(request.backend),
        "backend": request.backend,
        "device": str(next(iter(groups[0].values())).device),
    }


def _refuse_other_results(summary: Path, provenance: Mapping[str, Any]) -> None:
    """Keep masks and table of one folder about the same patients."""
    refuse_file(summary.parent)
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
