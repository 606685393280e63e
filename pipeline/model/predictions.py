"""Predict volumes without truth: write masks, maps, a table and a summary."""

from __future__ import annotations

import glob
import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from pipeline.cohort.inputs import (
    Inputs,
    Source,
    build_volume,
    find_inputs,
    name_sequences,
    write_segmentation_of,
)
from pipeline.cohort.names import shortened
from pipeline.cohort.pseudonyms import check_place, key_for
from pipeline.cohort.reading import build_images
from pipeline.errors import ManifestError, PipelineError, WritingError
from pipeline.files import (
    BUILT_MARK,
    FIGURES,
    FINISHED,
    RESULT_SUFFIXES,
    SEGMENTATION_SUFFIX,
    SUMMARY_NAME,
    holds_files,
    path_list,
)
from pipeline.imaging.nifti import oddities, save_map, spacing_mm
from pipeline.model.backends import TORCH
from pipeline.model.bundle import config_of, device_of, load_bundles, refuse_single_pass, refuse_unequal, versions
from pipeline.model.predictor import LOW_AGREEMENT, Predictor, is_low, overlapped, save_prediction
from pipeline.model.sharing import Finished, Share, own_device, shared
from pipeline.scripts.faults import fault_lines, shown
from pipeline.scripts.files import locked, sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import IMAGE_SUFFIX, MASK_SUFFIX, PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX, VOLUMES
from pipeline.scripts.volumes import affine_mm, open_nifti, oriented, refuse_faults

logger = logging.getLogger(__name__)

TABLE_NAME = "predictions.csv"
PREDICTIONS_NAME = "predictions.json"
PAGE_NAME = "predictions.html"


@dataclass(frozen=True)
class Prediction:
    """What was found in one volume: a row of ``predictions.csv``.

    Args:
        volume: The volume's name.
        lesion_voxels: Number of voxels in the mask.
        lesion_ml: Volume of the mask in ml; None if the voxel size is not known.
        lesion_slices: Number of axial slices that the mask touches.
        slices: Number of axial slices of the volume.
        box: First and last voxel of the mask along each axis of the file, ``i i j j k k``, counted from 0; empty if the
            mask is empty.
        centroid_mm: Mean position of the mask's voxels in mm to the right, anterior, superior (RAS+, by the file's
            affine); empty if the mask is empty or the voxel size is not known.
        image: The image file that was read.
        image_sha256: SHA-256 of the image file.
        agreement: Mean DSC between the masks of all networks and flips, 0 to 1; None for a single network without
            flips, or if all these masks are empty.
    """

    volume: str
    lesion_voxels: int
    lesion_ml: float | None
    lesion_slices: int
    slices: int
    box: tuple[int, ...]
    centroid_mm: tuple[float, ...]
    image: str
    image_sha256: str
    agreement: float | None = None


@dataclass(frozen=True)
class PredictionResult:
    """The outcome of ``predict_volumes``.

    Args:
        predictions: What was found in each volume, in the order of the input.
        faults: File or patient -> why it was not predicted.
        images: Name of each input volume -> its NIfTI file.
    """

    predictions: tuple[Prediction, ...]
    faults: dict[str, str]
    images: dict[str, Path]


def predict_volumes(
    inputs: str | Path | Sequence[str | Path],
    bundles: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    flips: bool = False,
    probability: bool = False,
    uncertainty: bool = False,
    backend: str = TORCH,
    device: str | None = None,
    trust: bool = False,
    allow_gaps: bool = False,
    pseudonymise: str | Path | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    all_components: bool = False,
    series: str | None = None,
    pre: str | Path | None = None,
    post: str | Path | None = None,
    dicom_seg: bool = False,
    draw: Callable[[PredictionResult], None] | None = None,
) -> PredictionResult:
    """Predict volumes without truth; write masks, maps, ``predictions.csv`` and ``predictions.json``.

    Unusable headers of NIfTI volumes are reported before the first volume is predicted. Later, a volume that cannot
    be predicted does not stop the others. Neither does a patient whose files are not clear. Under torchrun, each
    process predicts a share of the volumes, and the first process writes the table of all.

    Args:
        inputs: Volume files (NIfTI, MHA, NRRD), zips of DICOM, folders of volumes, DICOM or slices, and manifests or
            their folders.
        bundles: Names or folders of the bundles. The probabilities of several bundles are averaged.
        out: The folder to write the results to.
        weights: One weights file for each bundle; empty to use the bundles' own weights.
        flips: Also predict the left-right mirrored volume, and average both.
        probability: Also write ``NAME_probability.nii.gz``.
        uncertainty: Also write ``NAME_uncertainty.nii.gz``.
        backend: The software that runs the networks, a key of ``BACKENDS``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also run bundles that are not this project's. Their configs can run any code.
        allow_gaps: Accept missing slice numbers in folders of slices.
        pseudonymise: A CSV file of names and pseudonyms, which is read and extended; None keeps the names.
        overwrite: Replace results that already exist.
        skip_existing: Continue a run of the same settings that stopped, or add patients to it. Volumes that have a mask
            are not predicted again. Masks that were changed, or belong to other settings or another image, are refused
            unless ``overwrite`` is true. The tables and pictures are only those of ``inputs``.
        all_components: Keep every connected component of a mask, not only the largest.
        series: SeriesNumber or SeriesInstanceUID of the DICOM series to use as FLAIR.
        pre: A file with pre-contrast T1, on any grid, for the single FLAIR file in ``inputs``.
        post: A file with post-contrast T1, on any grid, for the single FLAIR file in ``inputs``.
        dicom_seg: Also write ``NAME_seg.dcm`` for DICOM inputs. That file holds the patient's identity, as DICOM
            requires.
        draw: A function that draws pictures of the result into ``figures/``. It runs before any other run can write to
            ``out``.

    Returns:
        What was found in each volume, and why other volumes could not be predicted.

    Raises:
        ManifestError: Slices or volumes have errors, or no volume could be predicted.
        PipelineError: An option, a bundle or the folder ``out`` cannot be used; the message says which.

    Examples:
        >>> import pipeline
        >>> result = pipeline.predict_volumes("flair.nii.gz", "basic_unet", "masks")
        >>> [found.volume for found in result.predictions]
        ['flair']
        >>> result.predictions[0].lesion_slices <= result.predictions[0].slices
        True
    """
    given, bundles, weights, out = path_list(inputs), path_list(bundles), path_list(weights), Path(out)
    if uncertainty:
        refuse_single_pass(len(bundles), flips=flips)
    found = _found(given, out, series, pre, post)
    _refuse_unfit_options(found, series=series, dicom_seg=dicom_seg, pseudonymise=bool(pseudonymise))
    for bundle in bundles:
        config_of(bundle)
    refuse_unequal("--weights", weights, bundles)
    device_of(device, backend)
    with shared() as share, locked(out, (VOLUMES, FIGURES)) if share.is_first else nullcontext():
        key: dict[str, str] = {}
        if pseudonymise:
            check_place(Path(pseudonymise), out, *given)
            found, key = _pseudonymised(found, Path(pseudonymise), out, share)
        _refuse_what_is_there(out, () if overwrite or skip_existing else [*found.sources])
        share.wait()
        if share.is_first:
            _build_slices(found, out, key, allow_gaps=allow_gaps)
        share.wait()
        refuse_faults({"image": source.image} for source in found.sources.values() if not source.is_built)
        networks = load_bundles(bundles, weights, backend, device=own_device(device, backend), trust=trust)
        for line in filter(None, (network.as_trained() for network in networks)):
            logger.info(line)
        predictor = Predictor(networks, flips=flips, uncertainty=uncertainty, all_components=all_components)
        settings = {
            "bundles": [network.provenance() for network in networks],
            "tta": flips,
            "all_components": all_components,
            "backend": backend,
        }
        written = {"probability": probability, "uncertainty": uncertainty, "dicom_seg": dicom_seg, "series": series}
        finished = Finished(out, {**settings, **written, "versions": versions(backend)})
        if skip_existing and not overwrite:
            _refuse_other_settings(out, finished, found.sources)
        _clear(out, finished, share, [] if skip_existing else [*found.sources])
        keep = _Kept(out, finished, probability=probability, dicom_seg=dicom_seg, overwrite=overwrite)
        own = {name: found.sources[name] for name in share.of([*found.sources])}
        predictions, faults = _all_predicted(predictor, own, keep)
        by_name = {one.volume: one for one in share.gather(predictions)}
        faults, reused = dict(share.gather([*faults.items()])), share.gather(keep.reused)
        if not by_name:
            raise ManifestError({path: [message] for path, message in {**faults, **found.refused}.items()})
        images = {name: source.image for name, source in found.sources.items()}
        labels = _labels(found.sources, key)
        predictions = [replace(by_name[name], image=labels[str(images[name])]) for name in images if name in by_name]
        result = PredictionResult(tuple(predictions), {**faults, **found.refused}, images)
        if share.is_first:
            facts = {**settings, "device": str(networks[0].device), "versions": versions(backend)}
            _write_tables(out, facts, predictions, _failed(faults, found, labels, key))
            _log_counts(found, len(predictions), named=not key)
            if reused:
                logger.info(f"not predicted again: {len(reused)}, whose masks are those of an earlier run")
            if draw:
                draw(result)
        share.wait()  # A launcher ends all processes with the first that ends, so the others wait.
    return result


def _refuse_unfit_options(found: Inputs, *, series: str | None, dicom_seg: bool, pseudonymise: bool) -> None:
    """Refuse options that would have no effect, or that would publish names that a pseudonym hides."""
    is_dicom = [source.dicom is not None for source in found.sources.values()]
    if series is not None and not any(is_dicom):
        raise PipelineError("--series without DICOM (expected a folder or zip of DICOM). Leave --series out.")
    if dicom_seg and not all(is_dicom):
        raise PipelineError("--dicom-seg with inputs that are not DICOM (expected only DICOM). Leave --dicom-seg out.")
    if dicom_seg and pseudonymise:
        raise PipelineError(
            "--dicom-seg with --pseudonymise (expected one of them): DICOM SEG names the patient. Leave one out."
        )


def _found(
    given: Sequence[Path], out: Path, series: str | None, pre: str | Path | None, post: str | Path | None
) -> Inputs:
    if series == "":
        raise PipelineError(
            "--series is empty (expected a SeriesNumber or SeriesInstanceUID). Name one, or leave it out."
        )
    if pre or post:
        return name_sequences(given, Path(pre) if pre else None, Path(post) if post else None, out)
    return find_inputs(given, out, series)


def _build_slices(found: Inputs, out: Path, key: Mapping[str, str], *, allow_gaps: bool) -> None:
    """Build volumes from folders of slices. Mark ``volumes/`` as built, so that no later run reads it as an input."""
    if found.slice_folders or any(source.is_built for source in found.sources.values()):
        if holds_files(out / VOLUMES) and not (out / BUILT_MARK).is_file():
            raise PipelineError(f"{out / VOLUMES}: holds volumes of no prediction. Choose another --out.")
        write_durably(out / BUILT_MARK, b"volumes/ was built from other files. It is not an input of a prediction.\n")
    for folder in found.slice_folders:
        build_images(folder, out / VOLUMES, allow_gaps=allow_gaps, names=key)


def _clear(out: Path, finished: Finished, share: Share, replaced: Iterable[str]) -> None:
    """Remove earlier tables and pages, and records and pictures of the volumes whose masks are replaced."""
    share.wait()  # until every process has seen the earlier results
    if share.is_first:
        for name in (TABLE_NAME, PREDICTIONS_NAME, PAGE_NAME):
            with writing_errors(out / name):
                (out / name).unlink(missing_ok=True)
        with writing_errors(out):
            finished.clear(replaced)
            for name in replaced:
                shutil.rmtree(out / FIGURES / name, ignore_errors=True)
                (out / FIGURES / f"{name}.gif").unlink(missing_ok=True)
    share.wait()


def _write_tables(
    out: Path, facts: Mapping[str, Any], predictions: Sequence[Prediction], failed: Mapping[str, str]
) -> None:
    """Write ``predictions.json`` and ``predictions.csv``."""
    rows = [asdict(prediction) for prediction in predictions]
    summary = {**facts, "volumes": rows, "failed": failed}
    write_durably(out / PREDICTIONS_NAME, (json.dumps(summary, indent=2) + "\n").encode())
    lists = {name: [" ".join(map(str, row[name])) for row in rows] for name in ("box", "centroid_mm")}
    table = pd.DataFrame(rows).assign(**lists).to_csv(index=False, lineterminator="\n")
    write_durably(out / TABLE_NAME, table.encode())


def predictions_table(predictions: Sequence[Prediction]) -> str:
    """The predictions as a table in plain text: one line for each volume.

    Args:
        predictions: What was found in each volume.
    """
    width = max([len("volume"), *(len(shown(found.volume)) for found in predictions)])
    agreement = any(found.agreement is not None for found in predictions)
    lines = [f"{'volume':<{width}}  {'voxels':>8}  {'ml':>8}  " + "agreement  " * agreement + "slices with lesion"]
    for found in predictions:
        ml = "-" if found.lesion_ml is None else f"{found.lesion_ml:.2f}"
        agrees = "-" if found.agreement is None else f"{found.agreement:.3f}"
        counts = f"{found.lesion_voxels:>8}  {ml:>8}  {f'{agrees:>9}  ' * agreement}"
        lines.append(f"{shown(found.volume):<{width}}  {counts}{found.lesion_slices} of {found.slices}")
    if low := [found.volume for found in predictions if is_low(found.agreement)]:
        lines.append(f"look first at the masks with an agreement under {LOW_AGREEMENT}: {shortened(low)}")
    if empty := [found.volume for found in predictions if not found.lesion_voxels]:
        lines.append(f"no lesion found, look at these images: {shortened(empty)}")
    return "\n".join(lines)


def _refuse_what_is_there(out: Path, names: Sequence[str]) -> None:
    """Refuse the folder of an evaluation, pictures of no prediction, and earlier results of the same names, if any."""
    if (out / SUMMARY_NAME).exists():
        raise PipelineError(f"{out}: holds an evaluation ({SUMMARY_NAME}). Choose another --out.")
    if holds_files(out / FIGURES) and not (out / FINISHED).is_dir():
        raise PipelineError(f"{out / FIGURES}: holds pictures of no prediction. Choose another --out.")
    if not names:
        return
    files = [f"{name}{kind}" for name in names for kind in RESULT_SUFFIXES]
    there = [out / name for name in (*files, TABLE_NAME, PREDICTIONS_NAME, PAGE_NAME) if (out / name).exists()]
    if there:
        more = f", with {len(there) - 1} more" if len(there) > 1 else ""
        raise PipelineError(
            f"{there[0]}: already exists{more}. Choose another --out, or pass --skip-existing to continue that run, or "
            "--overwrite to replace its results."
        )


def _refuse_other_settings(out: Path, finished: Finished, names: Iterable[str]) -> None:
    """Refuse to continue a run whose masks belong to other networks or options, and would be replaced."""
    others = [f"{name}{MASK_SUFFIX}" for name in names if finished.is_of_other_settings(name)]
    others = [name for name in others if (out / name).exists()]
    if others:
        raise PipelineError(
            f"{out}: {shortened(others)} of other bundles, options or versions (expected those of this run). Choose "
            "another --out, or pass --overwrite."
        )


def _pseudonymised(inputs: Inputs, path: Path, out: Path, share: Share) -> tuple[Inputs, dict[str, str]]:
    """The inputs under their pseudonyms, and the key (name -> pseudonym). One process extends the key for all."""
    built = out / VOLUMES
    for name in inputs.sources:
        for place in (out, built):
            if any(place.glob(f"{glob.escape(name)}_*.nii.gz")):
                raise PipelineError(f"{place}: holds results under the patients' own names. Choose another --out.")
    key = share.gather([key_for(path, [*inputs.sources, *inputs.refused]) if share.is_first else {}])[0]
    renamed = {
        key[name]: replace(source, image=built / f"{key[name]}{IMAGE_SUFFIX}")
        if source.image.parent == built
        else source
        for name, source in inputs.sources.items()
    }
    return replace(inputs, sources=dict(sorted(renamed.items()))), key  # The order of the names could reveal them.


@dataclass(frozen=True)
class _Kept:
    """What is written for each volume, and where."""

    out: Path
    finished: Finished
    probability: bool
    dicom_seg: bool
    overwrite: bool
    reused: list[str] = field(default_factory=list)
    """Names of the volumes whose masks an earlier run has written."""


def _all_predicted(
    predictor: Predictor, sources: Mapping[str, Source], keep: _Kept
) -> tuple[list[Prediction], dict[str, str]]:
    """What was found in the volumes, and file -> error for those that could not be predicted."""
    odd: list[tuple[str, str]] = []

    def attempt(name: str) -> Prediction | PipelineError:
        try:
            return _predicted(predictor, name, sources[name], keep, odd)
        except WritingError:
            raise  # The next volume could not be written either. Earlier files stay.
        except PipelineError as error:
            if keep.overwrite:  # no mask of an earlier run stays among the new ones
                for path in _results(keep.out, name):
                    path.unlink(missing_ok=True)
            return error

    outcomes = dict(zip(sources, overlapped(attempt, [*sources], "predict"), strict=True))
    for line in fault_lines(sorted(odd)).splitlines():
        logger.warning(line)
    predictions = [one for one in outcomes.values() if isinstance(one, Prediction)]
    faults = {}
    for name, source in sources.items():
        if isinstance(error := outcomes[name], PipelineError):
            named = (path for path in _own_files(source) if str(error).startswith(f"{path}: "))
            subject = str(next(named, source.image))
            faults[subject] = str(error).removeprefix(f"{subject}: ")
    return predictions, faults


def _own_files(source: Source) -> list[Path]:
    """The files that belong only to this source. A folder of DICOM is left out: it may hold several patients."""
    return [path for path in source.files if path != source.dicom]


def _predicted(predictor: Predictor, name: str, source: Source, keep: _Kept, odd: list[tuple[str, str]]) -> Prediction:
    """Predict one volume, and write its mask and maps. Add a (name, remark) to ``odd`` for each thing to warn of."""
    image, out = source.image, keep.out
    remarks = build_volume(source)
    if earlier := _earlier(name, source, keep):
        keep.reused.append(name)
        return earlier
    there = [path for path in _results(out, name) if path.exists()]
    if not keep.overwrite and there and not keep.finished.is_begun(name):
        raise PipelineError(
            f"{there[0].name} belongs to another image, or was changed or added later, or a file beside it is missing. "
            "Move it, choose another --out, or pass --overwrite."
        )
    odd += [(shown(name), oddity) for oddity in (*remarks, *oddities(image))]
    prediction = predictor.predict(image)
    keep.finished.begin(name)
    mask, segmentation = out / f"{name}{MASK_SUFFIX}", out / f"{name}{SEGMENTATION_SUFFIX}"
    if keep.dicom_seg:  # first: where it cannot be written, the patient is refused and no mask stays
        write_segmentation_of(source, prediction.mask, segmentation)
    else:
        segmentation.unlink(missing_ok=True)  # of an earlier run
    save_prediction(prediction, image, mask, out / f"{name}{UNCERTAINTY_SUFFIX}")
    probability = out / f"{name}{PROBABILITY_SUFFIX}"
    if keep.probability:
        save_map(prediction.probability, probability, image)
    else:
        probability.unlink(missing_ok=True)  # of an earlier run
    affine, spacing = affine_mm(open_nifti(image)), spacing_mm(image)
    places, voxels = np.argwhere(prediction.mask), int(prediction.mask.sum())
    axial = np.asarray(oriented(prediction.mask, affine).any(axis=(0, 1)))
    found = Prediction(
        volume=name,
        lesion_voxels=voxels,
        lesion_ml=None if spacing is None else voxels * math.prod(spacing) / 1000,
        lesion_slices=int(axial.sum()),
        slices=len(axial),
        box=tuple(np.stack([places.min(0), places.max(0)], 1).ravel().tolist()) if voxels else (),
        centroid_mm=tuple(np.round(apply_affine(affine, places.mean(0)), 1).tolist()) if voxels and spacing else (),
        image=str(image),
        image_sha256=sha256_file(image),
        agreement=prediction.agreement,
    )
    row = {**asdict(found), "image": ""}  # The path may name a person, and is not needed.
    keep.finished.write(name, row, [image, *(path for path in _results(out, name) if path.exists())])
    return found


def _results(out: Path, name: str) -> list[Path]:
    """All files that a prediction may write for a volume."""
    return [out / f"{name}{suffix}" for suffix in RESULT_SUFFIXES]


def _earlier(name: str, source: Source, keep: _Kept) -> Prediction | None:
    """What an earlier run with the same settings found in the same image; None without it or without its files."""
    row = keep.finished.read(name, [source.image, *(path for path in _results(keep.out, name) if path.exists())])
    if row is None:
        return None
    lists = {"box": tuple(row["box"]), "centroid_mm": tuple(row["centroid_mm"])}
    return Prediction(**{**row, **lists, "image": str(source.image)})


def _labels(sources: Mapping[str, Source], key: Mapping[str, str]) -> dict[str, str]:
    """The label of each own file of the sources. Where two images have one file name, the volume's name leads it."""
    found = {name: _label(name, source, key) for name, source in sources.items()}
    counts = Counter(found.values())
    found |= {name: f"{name}: {label}" for name, label in found.items() if counts[label] > 1}
    return {str(path): found[name] for name, source in sources.items() for path in _own_files(source)}


def _label(name: str, source: Source, key: Mapping[str, str]) -> str:
    """The name of an image in results. It reveals no folder of this machine and, with pseudonyms, no patient."""
    image = source.image
    if key or source.is_built:
        return f"{name}{IMAGE_SUFFIX}"
    return shown(image.name if image.is_absolute() else image)


def _failed(
    faults: Mapping[str, str], inputs: Inputs, labels: Mapping[str, str], key: Mapping[str, str]
) -> dict[str, str]:
    """Label -> error. A path in an error loses its folder; with pseudonyms, the label replaces it."""
    failed = {labels[path]: text for path, text in faults.items()}
    for source in inputs.sources.values():
        for path in source.files:
            word = labels[str(source.image)] if key else path.name
            for name in (str(path), path.name) if key else (str(path),):
                whole = rf"(?<![\w./\\-]){re.escape(name)}(?![\w-]|\.\w)"  # not inside a number, word or longer path
                failed = {label: re.sub(whole, word.replace("\\", r"\\"), text) for label, text in failed.items()}
    refused = {key.get(name, name): message.partition(":")[0] for name, message in inputs.refused.items()}
    return failed | dict(sorted(refused.items()))


def _log_counts(inputs: Inputs, used: int, *, named: bool) -> None:
    """Log how many patients and other files were used, skipped and refused, so that none is lost in silence."""
    patients, skipped = len(inputs.sources) + len(inputs.refused), inputs.skipped
    logger.info(
        f"patients and other files: {patients + len(skipped)} found = {used} used + {len(skipped)} skipped + "
        f"{patients - used} refused"
    )
    if skipped and named:
        for reason, files in groupby(sorted(skipped, key=skipped.__getitem__), key=skipped.__getitem__):
            logger.info(f"skipped, {reason}: {shortened([path.name for path in files])}")
