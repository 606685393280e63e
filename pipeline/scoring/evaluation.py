"""Predict and score the volumes of a manifest, and keep all that a report needs beside the scores."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cohort.manifest import Manifest, Volume, read_manifest, select, verify_volume
from pipeline.errors import PipelineError
from pipeline.files import (
    FIGURES,
    MAP_FOLDER,
    MASK_FOLDER,
    SUMMARY_NAME,
    holds_files,
    link_or_copy,
    named_path,
    path_list,
)
from pipeline.imaging.nifti import load_label, spacing_mm
from pipeline.model.backends import TORCH
from pipeline.model.bundle import Bundle, load_bundle, load_bundles, refuse_unequal, versions
from pipeline.model.predictor import Predictor, overlapped, save_prediction
from pipeline.model.sharing import Finished, own_device, shared
from pipeline.scoring.curves import CURVES_NAME, read_events, write_curves
from pipeline.scoring.metrics import reliability, score_volume, slice_counts
from pipeline.scoring.protocols import PROTOCOLS, view
from pipeline.scoring.results import (
    SCORES_NAME,
    SLICES_NAME,
    VolumeScore,
    write_scores,
    write_slices,
    write_summary,
)
from pipeline.scoring.statistics import summarise
from pipeline.scripts.files import locked, write_durably
from pipeline.scripts.manifest import (
    IMAGE_SUFFIX,
    LABEL_SUFFIX,
    MASK_SUFFIX,
    UNCERTAINTY_SUFFIX,
    VOLUMES,
    is_pseudonymised,
    person,
)
from pipeline.scripts.records import has_other_names, knows_all_patients, seen_patients
from pipeline.scripts.volumes import open_nifti, oriented, refuse_faults

logger = logging.getLogger(__name__)

FoldBundles = Mapping[int | None, Bundle]
"""Fold -> the bundle with the weights of this fold; ``{None: bundle}`` without folds."""


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of ``evaluate_volumes``.

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
    patients: Sequence[str] = (),
    protocol: str = "native",
    flips: bool = False,
    uncertainty: bool = False,
    per_slice: bool = False,
    backend: str = TORCH,
    device: str | None = None,
    trust: bool = False,
    skip_existing: bool = False,
    seed: int = 0,
    command: str = "",
    draw: Callable[[EvaluationResult], None] | None = None,
) -> EvaluationResult:
    """Predict and score the volumes of a manifest; write scores, summary, masks, volumes, maps and training curves.

    Under torchrun, each process predicts a share of the volumes, and the first process writes the table of all.

    Args:
        manifest: ``manifest.json`` or its folder, or another Decathlon datalist of NIfTI images and labels.
        bundles: Names or folders of the bundles. The probabilities of several bundles are averaged.
        out: The folder to write the results to, as ``lgg-flair evaluate`` does.
        weights: One weights file for each bundle; empty to use the bundles' own weights.
        folds: One folder with ``fold_K/model.pt`` for each bundle; empty to use one set of weights for all patients.
        fold: Evaluate only the patients of this fold; None for all folds.
        split: The manifest's section to evaluate, or ``all``. None means ``all`` with ``folds`` or ``fold``, else
            ``validation``.
        patients: Ids of the patients to evaluate; empty for all patients of the section.
        protocol: The way of scoring, a key of ``PROTOCOLS``.
        flips: Also predict the left-right mirrored volume, and average both.
        uncertainty: Also write uncertainty maps.
        per_slice: Also write ``slices.csv``, the scores of single slices.
        backend: The software that runs the networks, a key of ``BACKENDS``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also run bundles that are not this project's. Their configs can run any code.
        skip_existing: Continue an evaluation of the same settings that stopped. Volumes that have a mask are not
            predicted again.
        seed: Seed of the bootstrap interval, 0 or more.
        command: The command line of the evaluation, recorded in the summary.
        draw: A function that draws pictures of the result into ``figures/``. It runs before any other run can write to
            ``out``. None removes pictures of an earlier evaluation, which show other masks.

    Returns:
        The scores of all volumes and their summary.

    Raises:
        PipelineError: An option, a bundle, a volume or the folder ``out`` cannot be used; the message says which.

    Examples:
        >>> import pipeline
        >>> result = pipeline.evaluate_volumes("data_manifest", "basic_unet", "runs/basic_unet")
        >>> print(f"mean DSC {result.summary['dsc_mean']:.4f} of {len(result.scores)} volumes")
        mean DSC ... of ... volumes
    """
    bundles = tuple(named_path(bundle, "bundles") for bundle in path_list(bundles))
    weights, folds, out = path_list(weights), path_list(folds), Path(out)
    _refuse_options(weights, folds, bundles, protocol, seed)
    split = split or ("all" if folds or fold is not None else "validation")
    cohort = read_manifest(manifest)
    volumes = _named(_of_fold(select(cohort, split), cohort, fold), patients)
    with shared() as share:
        share.check(verify_volume, volumes)
        refuse_faults({"image": volume.image, "label": volume.label} for volume in volumes)
        device = own_device(device, backend)
        if folds:
            pairs = zip(bundles, folds, strict=True)
            groups = [
                load_folds(bundle, runs, cohort.folds, backend, only=fold, device=device, trust=trust)
                for bundle, runs in pairs
            ]
        else:
            groups = [{None: bundle} for bundle in load_bundles(bundles, weights, backend, device=device, trust=trust)]
        predictors = {
            volume.patient: Predictor(bundles_for(groups, volume), flips=flips, uncertainty=uncertainty)
            for volume in volumes
        }
        loaded = [(fold_of, bundle) for group in groups for fold_of, bundle in group.items()]
        provenance = {
            "command": command,
            "protocol": protocol,
            "split": split,
            "fold": fold,
            "patients": sorted(patients) or None,
            "tta": flips,
            "bundles": [
                bundle.provenance() if fold_of is None else {**bundle.provenance(), "fold": fold_of}
                for fold_of, bundle in loaded
            ],
            "manifest_sha256": cohort.sha256,
            "seen_in_training": [
                patient for patient, predictor in predictors.items() if _is_trained_on(patient, predictor.bundles)
            ],
            "seed": seed,
            "versions": versions(backend),
            "backend": backend,
            "device": str(loaded[0][1].device),
        }
        settings = {
            key: provenance[key] for key in ("protocol", "tta", "bundles", "manifest_sha256", "backend", "versions")
        }
        finished = Finished(out, {**settings, "uncertainty": uncertainty, "per_slice": per_slice})

        def score_of(volume: Volume) -> VolumeScore:
            files = [volume.image, volume.label, *_written(out, volume.patient, uncertainty=uncertainty)]
            if (row := finished.read(volume.patient, files)) and _has_copies(out, volume.patient):
                lists = {name: tuple(map(tuple, row[name])) for name in ("reliability", "slices")}
                return VolumeScore(**{**row, **lists})
            score = _scored(volume, predictors[volume.patient], protocol, out, per_slice=per_slice)
            score = replace(score, seen=_seen(volume.patient, predictors[volume.patient].bundles, cohort))
            finished.write(volume.patient, asdict(score), files)
            return score

        with locked(out, (MASK_FOLDER, VOLUMES, MAP_FOLDER, FIGURES)) if share.is_first else nullcontext():
            if share.is_first:
                _refuse_other_results(out, provenance)
                _log_notes(
                    [bundle for _, bundle in loaded], cohort, provenance, len(volumes), unseen_expected=bool(folds)
                )
                if draw is None:
                    shutil.rmtree(out / FIGURES, ignore_errors=True)
                if not skip_existing:
                    finished.clear(volume.patient for volume in volumes)
                write_summary(out, provenance)  # no statistics yet: the results are not complete
            share.wait()
            gathered = share.gather(overlapped(score_of, share.of(volumes), "evaluate"))
            by_patient = {score.patient: score for score in gathered}
            scores = [by_patient[volume.patient] for volume in volumes]
            result = EvaluationResult(tuple(scores), {**provenance, **summarise(scores, seed)}, volumes)
            if share.is_first:
                write_scores(out, scores)
                write_slices(out, scores)
                write_curves(out / CURVES_NAME, _training_curves(bundles, weights, folds, groups))
                write_summary(out, result.summary)
                if draw:
                    draw(result)
            share.wait()  # A launcher ends all processes with the first that ends, so the others wait.
    return result


def _refuse_options(
    weights: Sequence[Path], folds: Sequence[Path], bundles: Sequence[Path], protocol: str, seed: int
) -> None:
    if weights and folds:
        raise PipelineError(
            "--weights with --folds (expected one of them). Leave one out: the folds have their own weights."
        )
    refuse_unequal("--folds", folds, bundles)
    if protocol not in PROTOCOLS:
        raise PipelineError(f"protocol {protocol!r}: unknown (expected {' or '.join(PROTOCOLS)}).")
    if seed < 0:
        raise PipelineError(f"--seed {seed} (expected 0 or more).")


def _named(volumes: Sequence[Volume], patients: Sequence[str]) -> tuple[Volume, ...]:
    """The volumes of these patients, in the manifest's order; all volumes if no patient is named."""
    unknown = sorted(set(patients) - {volume.patient for volume in volumes})
    if unknown:
        raise PipelineError(
            f"--patients {' '.join(unknown)}: not in this section of the manifest. Choose another --split."
        )
    return tuple(volume for volume in volumes if not patients or volume.patient in patients)


def bundles_for(groups: Sequence[FoldBundles], volume: Volume) -> list[Bundle]:
    """The bundles that predict a volume, so that no fold predicts a patient that it was trained on.

    Args:
        groups: For each bundle, fold -> the bundle with the weights of this fold.
        volume: A volume of the manifest. A volume without a fold is predicted by all folds.
    """
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
    device: str | None = None,
    trust: bool = False,
) -> FoldBundles:
    """A bundle with the weights of each fold of a cross-validation: fold -> bundle.

    Args:
        bundle: The bundle's folder.
        runs: The folder of the cross-validation, with ``fold_K/model.pt`` for each fold.
        folds: The manifest's folds.
        backend: The software that runs the network, a key of ``BACKENDS``.
        only: Load only this fold; None for all folds.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also load a bundle that is not this project's. Its config can run any code.

    Raises:
        PipelineError: The folder does not hold the weights of these folds, or they cannot be loaded.
    """
    found = {int(path.parent.name[5:]): path for path in runs.glob("fold_*/model.pt") if path.parent.name[5:].isdigit()}
    wanted = list(folds) if only is None else [only]
    if not found or (sorted(found) != wanted if only is None else only not in found):
        has, expected = (", ".join(map(str, sorted(numbers))) or "none" for numbers in (found, folds))
        raise PipelineError(
            f"{runs}: holds weights of folds {has} (expected the manifest's: {expected}). Train every fold: "
            f"lgg-flair train --fold all --out {runs}, on a manifest built with --folds K."
        )
    return {fold: load_bundle(bundle, found[fold], backend, device=device, trust=trust) for fold in wanted}


def _of_fold(volumes: Sequence[Volume], manifest: Manifest, fold: int | None) -> tuple[Volume, ...]:
    if fold is None:
        return tuple(volumes)
    if fold not in manifest.folds:
        numbers = ", ".join(map(str, manifest.folds)) or "none: build the manifest with --folds K"
        raise PipelineError(f"--fold {fold}: not in the manifest (expected one of its folds: {numbers}).")
    chosen = tuple(volume for volume in volumes if volume.fold == fold)
    if not chosen:
        raise PipelineError(
            f"--fold {fold}: has no patient in this --split. Leave --split out to evaluate the whole fold."
        )
    return chosen


def _refuse_other_results(out: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse to mix results of different patients in one folder, and to replace files of no evaluation."""
    try:
        earlier = json.loads((out / SUMMARY_NAME).read_bytes())
        same = all(earlier.get(key) == provenance[key] for key in ("split", "fold", "patients", "manifest_sha256"))
    except FileNotFoundError:
        for name in (MASK_FOLDER, VOLUMES, MAP_FOLDER, FIGURES, SCORES_NAME, SLICES_NAME, CURVES_NAME):
            place = out / name
            if place.is_file() or holds_files(place):
                raise PipelineError(f"{place}: is of no evaluation. Choose another --out, or move it away.") from None
        return
    except (OSError, ValueError, AttributeError):
        same = False
    if not same:
        raise PipelineError(
            f"{out}: holds results of another split, fold, manifest or choice of patients. Choose another --out, or "
            "delete the results."
        )
    logger.info(f"{out}: replaces the earlier results, and removes pictures and maps of other masks")


def _log_notes(
    bundles: Sequence[Bundle], manifest: Manifest, provenance: Mapping[str, Any], volumes: int, *, unseen_expected: bool
) -> None:
    """Log the networks' settings. Warn if patients who should be unseen were trained on."""
    if _other_names(bundles, manifest):
        logger.warning(
            "this manifest and that of the training use different pseudonyms or names, so it is not known whether the "
            "weights were trained on these patients"
        )
    for line in filter(None, dict.fromkeys(bundle.as_trained() for bundle in bundles)):
        logger.info(line)
    seen = provenance["seen_in_training"]
    if seen and (unseen_expected or provenance["split"] not in ("training", "all")):
        logger.warning(
            f"the weights were trained on {len(seen)} of {volumes} patients, so their scores do not hold for "
            f"new patients: {', '.join(seen)}"
        )


def _scored(volume: Volume, predictor: Predictor, protocol: str, out: Path, *, per_slice: bool) -> VolumeScore:
    """Predict one volume, keep what a report needs of it, and score it."""
    prediction = predictor.predict(volume.image)
    affine = open_nifti(volume.image).affine
    mask, probability = (oriented(each, affine) for each in (prediction.mask, prediction.probability))
    truth = load_label(volume.label)
    save_prediction(
        prediction,
        volume.image,
        out / MASK_FOLDER / f"{volume.patient}{MASK_SUFFIX}",
        out / MAP_FOLDER / f"{volume.patient}{UNCERTAINTY_SUFFIX}",
    )
    image = out / VOLUMES / f"{volume.patient}{IMAGE_SUFFIX}"
    if volume.image.name.lower().endswith(".gz"):
        link_or_copy(volume.image, image)
    else:
        write_durably(image, _gzipped(volume.image))
    # A copy, not a link: a user who corrects this label must not change the manifest's own.
    write_durably(out / VOLUMES / f"{volume.patient}{LABEL_SUFFIX}", _gzipped(volume.label))
    seen, true = view(protocol, mask, probability, truth)
    score = score_volume(volume.patient, seen, true, spacing_mm(volume.image))
    if per_slice:
        left_out = (truth.shape[2] - true.shape[2]) // 2  # slices that the protocol leaves out at each end
        score = replace(score, slices=slice_counts(seen, true, 1 + left_out))
    return replace(score, reliability=reliability(probability, truth), agreement=prediction.agreement)


def _written(out: Path, patient: str, *, uncertainty: bool) -> list[Path]:
    """Mask and map of a patient."""
    maps = [out / MAP_FOLDER / f"{patient}{UNCERTAINTY_SUFFIX}"] if uncertainty else []
    return [out / MASK_FOLDER / f"{patient}{MASK_SUFFIX}", *maps]


def _has_copies(out: Path, patient: str) -> bool:
    """Whether image and label of a patient lie in the folder of an evaluation."""
    return all((out / VOLUMES / f"{patient}{suffix}").is_file() for suffix in (IMAGE_SUFFIX, LABEL_SUFFIX))


def _is_trained_on(patient: str, bundles: Sequence[Bundle]) -> bool:
    """Whether the weights were trained on any exam of this person."""
    return person(patient) in {person(name) for bundle in bundles for name in seen_patients(bundle.record)}


def _seen(patient: str, bundles: Sequence[Bundle], manifest: Manifest) -> bool | None:
    """Whether any of the weights were trained on a patient; None if the records or the names do not show it."""
    if _is_trained_on(patient, bundles):
        return True
    known = all(knows_all_patients(bundle.record) for bundle in bundles) and not _other_names(bundles, manifest)
    return False if known else None


def _other_names(bundles: Sequence[Bundle], manifest: Manifest) -> bool:
    """Whether the weights' records may use other names for the same patients."""
    hidden = is_pseudonymised(manifest.raw)
    return any(has_other_names(bundle.record, manifest.sha256, pseudonymised=hidden) for bundle in bundles)


def _gzipped(path: Path) -> bytes:
    """A NIfTI file's bytes, compressed."""
    data = path.read_bytes()
    return data if path.name.lower().endswith(".gz") else gzip.compress(data, 1, mtime=0)


def _training_curves(
    bundles: Sequence[Path], weights: Sequence[Path], folds: Sequence[Path], groups: Sequence[FoldBundles]
) -> dict[str, Any]:
    """Name of a training -> its curves, for each training with event files beside its weights."""
    curves: dict[str, Any] = {}
    for number, group in enumerate(groups):
        for fold, bundle in group.items():
            if folds:
                places = [folds[number] / f"fold_{fold}"]
            elif weights:
                places = [weights[number].parent]
            else:
                places = [bundles[number] / "models", bundles[number] / "eval"]
            name = bundle.name if fold is None else f"{bundle.name}, fold {fold}"
            name = f"{name} ({number + 1})" if name in curves else name
            try:
                steps = int(bundle.training["config"]["steps_per_epoch"])
            except (KeyError, TypeError, ValueError):  # no record, or one that holds an expression
                steps = None
            curves[name] = next(filter(None, (read_events(place, steps) for place in places)), {})
    return {name: tags for name, tags in curves.items() if tags}
