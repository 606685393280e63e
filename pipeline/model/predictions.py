"""Volumes without truth predicted: masks, maps, a table and a summary."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cohort.inputs import BUILT_MARK, Inputs, find_inputs
from pipeline.cohort.listing import counts_line
from pipeline.cohort.pseudonyms import check_place, key_for
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import path_list, refuse_file
from pipeline.model.backends import TORCH
from pipeline.model.bundle import config_of, load_bundles, refuse_single_pass, refuse_unequal, versions
from pipeline.scripts.faults import shown
from pipeline.scripts.files import locked, sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import IMAGE_SUFFIX, MASK_SUFFIX, PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX, VOLUMES

if TYPE_CHECKING:
    from pipeline.model.bundle import Bundle
    from pipeline.model.predictor import Predictor

TABLE_NAME = "predictions.csv"
PREDICTIONS_NAME = "predictions.json"
FIGURES = "figures"
"""Folder of pictures, in results of any kind."""


@dataclass(frozen=True)
class PredictionRequest:
    """What is to be predicted; the fields are the arguments of ``predict_volumes``.

    Args:
        backend: A key of ``BACKENDS``.
        pseudonymise: A CSV of names and pseudonyms, read and extended; None keeps the names.
    """

    inputs: tuple[Path, ...]
    bundles: tuple[Path, ...]
    out: Path
    weights: tuple[Path, ...] = ()
    backend: str = TORCH
    trust: bool = False
    flips: bool = False
    probability: bool = False
    uncertainty: bool = False
    allow_gaps: bool = False
    pseudonymise: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Prediction:
    """What was found in one volume; a row of ``predictions.csv``.

    Args:
        volume: The volume's name.
        lesion_voxels: Voxels of the mask.
        lesion_ml: Volume of the mask in ml; None where the voxel's size is not known.
        lesion_slices: Slices with a voxel of the mask.
        slices: Slices of the volume.
        image: The file that was read.
        image_sha256: SHA-256 of that file.
        agreement: Mean DSC between the masks of networks and flips; None where it was not asked for, or no pass marks a
            voxel.
    """

    volume: str
    lesion_voxels: int
    lesion_ml: float | None
    lesion_slices: int
    slices: int
    image: str
    image_sha256: str
    agreement: float | None = None


@dataclass(frozen=True)
class PredictionPlan:
    """Volumes that have been found and checked, and the networks that will predict them.

    Args:
        request: What was asked for.
        inputs: The volumes, by the names that results will bear.
        key: Name -> pseudonym; empty where the names are kept.
        bundles: The bundles, loaded.
        notes: Lines that a person wants to read before the results.
    """

    request: PredictionRequest
    inputs: Inputs
    key: Mapping[str, str]
    bundles: tuple[Bundle, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PredictionResult:
    """The outcome of a prediction.

    Args:
        predictions: What was found, in the order of the volumes.
        faults: File -> why it was not predicted.
        notes: Lines that account for every volume that was found.
    """

    predictions: tuple[Prediction, ...]
    faults: dict[str, str]
    notes: tuple[str, ...]


def predict_volumes(
    inputs: str | Path | Sequence[str | Path],
    bundles: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    flips: bool = False,
    probability: bool = False,
    uncertainty: bool = False,
    allow_gaps: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> PredictionResult:
    """Predict volumes without truth; write masks, ``predictions.csv`` and ``predictions.json``.

    Args:
        inputs: NIfTI volumes, folders of them or of slices, manifests or their folders.
        bundles: The bundles' folders; the probabilities of several are averaged.
        out: The folder of the results.
        weights: One weights file for each bundle, or none for the bundles' own.
        flips: Average with the prediction of the left-right mirrored volume.
        probability: Also write ``NAME_probability.nii.gz``.
        uncertainty: Also write ``NAME_uncertainty.nii.gz``, and each volume's agreement.
        allow_gaps: Accept missing slice numbers in folders of slices.
        overwrite: Replace results that are there.
        trust: Also run bundles that are not this project's: their configs can run any code.

    Returns:
        What was found in each volume, and which volumes could not be predicted.

    Raises:
        ManifestError: Faults of slices or volumes, or no volume could be predicted.
        PipelineError: An option, a bundle or the folder cannot be used; the message says which.

    Example:
        >>> result = predict_volumes("patients", "bundles/basic_unet", "masks")
        >>> [found.lesion_voxels for found in result.predictions]
        [5310, 12402]
    """
    request = PredictionRequest(
        path_list(inputs),
        path_list(bundles),
        Path(out),
        weights=path_list(weights),
        flips=flips,
        probability=probability,
        uncertainty=uncertainty,
        allow_gaps=allow_gaps,
        overwrite=overwrite,
        trust=trust,
    )
    found, key = find_volumes(request)
    with lock_predictions(request.out):
        return run_predictions(prepare_predictions(request, found, key))


def lock_predictions(out: Path) -> AbstractContextManager[None]:
    """Keep a second run out of a folder of predictions while one writes there."""
    return locked(out, (VOLUMES, FIGURES))


def find_volumes(request: PredictionRequest) -> tuple[Inputs, dict[str, str]]:
    """Find the volumes of a request and check its options; nothing is written but the key of pseudonyms."""
    if request.uncertainty:
        refuse_single_pass(len(request.bundles), flips=request.flips)
    inputs = find_inputs(request.inputs, request.out)
    key: dict[str, str] = {}
    if request.pseudonymise:
        inputs, key = _pseudonymised(request, inputs)
    _refuse_what_is_there(request, inputs)
    for bundle in request.bundles:
        config_of(bundle)
    refuse_unequal("--weights", request.weights, request.bundles)
    return inputs, key


def prepare_predictions(request: PredictionRequest, inputs: Inputs, key: Mapping[str, str]) -> PredictionPlan:
    """Build volumes of slices, check all headers and load the networks."""
    from pipeline.scripts.volumes import image_faults

    notes = []
    for folder in inputs.slice_folders:
        from pipeline.cohort.reading import build_images

        mark = b"volumes/ here was built of slices; it is no input of a prediction\n"
        write_durably(request.out / BUILT_MARK, mark)
        built = build_images(folder, request.out / VOLUMES, allow_gaps=request.allow_gaps, names=key)
        notes.append(counts_line(built.counts))
        notes += [f"warning: {name}: {oddity}" for name, found in built.warnings.items() for oddity in found]
    faults = image_faults(inputs.volumes.values())
    if faults:
        raise ManifestError({str(path): [fault] for path, fault in faults.items()})
    bundles = load_bundles(request.bundles, request.weights, request.backend, trust=request.trust)
    notes += [bundle.as_trained() for bundle in bundles]
    return PredictionPlan(request, inputs, key, tuple(bundles), tuple(notes))


def run_predictions(plan: PredictionPlan) -> PredictionResult:
    """Predict all volumes; write masks, maps, ``predictions.csv`` and ``predictions.json``.

    A volume that cannot be predicted does not keep the others from it. Reading, network and writing of three volumes
    overlap.
    """
    from pipeline.model.predictor import Predictor, overlapped

    request, out, volumes = plan.request, plan.request.out, plan.inputs.volumes
    # Until the end there is no table: one of an earlier run would pass for that of new masks.
    for name in (TABLE_NAME, PREDICTIONS_NAME):
        with writing_errors(out / name):
            (out / name).unlink(missing_ok=True)
    predictor = Predictor(plan.bundles, flips=request.flips, uncertainty=request.uncertainty)
    faults: dict[str, str] = {}

    def attempt(name: str) -> Prediction | None:
        try:
            return _predicted(predictor, name, volumes[name], request)
        except PipelineError as error:
            faults[str(volumes[name])] = str(error).removeprefix(f"{volumes[name]}: ")
            return None

    found = overlapped(attempt, list(volumes), "predict")
    predictions = [prediction for prediction in found if prediction is not None]
    faults = {path: faults[path] for path in map(str, volumes.values()) if path in faults}
    if not predictions:
        raise ManifestError({path: [message] for path, message in faults.items()})
    if plan.key:  # the file's own name may be the patient's
        predictions = [replace(one, image=f"{one.volume}{IMAGE_SUFFIX}") for one in predictions]
    _write(plan, predictions, faults)
    return PredictionResult(tuple(predictions), faults, _accounted(plan, len(predictions)))


def predictions_table(predictions: Sequence[Prediction]) -> str:
    """The predictions as text."""
    width = max([len("volume"), *(len(shown(found.volume)) for found in predictions)])
    agreement = any(found.agreement is not None for found in predictions)
    lines = [f"{'volume':<{width}}  {'voxels':>8}  {'ml':>8}  " + "agreement  " * agreement + "slices with lesion"]
    for found in predictions:
        ml = "-" if found.lesion_ml is None else f"{found.lesion_ml:.2f}"
        agrees = "-" if found.agreement is None else f"{found.agreement:.3f}"
        counts = f"{found.lesion_voxels:>8}  {ml:>8}  {f'{agrees:>9}  ' * agreement}"
        lines.append(f"{shown(found.volume):<{width}}  {counts}{found.lesion_slices} of {found.slices}")
    return "\n".join(lines)


def _predicted(predictor: Predictor, name: str, image: Path, request: PredictionRequest) -> Prediction:
    from pipeline.imaging.nifti import refuse_unusable, voxel_ml
    from pipeline.model.predictor import save_prediction

    refuse_unusable(image)
    prediction = predictor.predict(image)
    probability = request.out / f"{name}{PROBABILITY_SUFFIX}"
    if not request.probability:
        probability.unlink(missing_ok=True)  # of an earlier run
    save_prediction(
        prediction,
        image,
        request.out / f"{name}{MASK_SUFFIX}",
        probability=probability if request.probability else None,
        uncertainty=request.out / f"{name}{UNCERTAINTY_SUFFIX}",
    )
    ml, voxels = voxel_ml(image), int(prediction.mask.sum())
    return Prediction(
        volume=name,
        lesion_voxels=voxels,
        lesion_ml=None if ml is None else voxels * ml,
        lesion_slices=int(prediction.mask.any(axis=(0, 1)).sum()),
        slices=prediction.mask.shape[2],
        image=image.name if image.is_absolute() else str(image),
        image_sha256=sha256_file(image),
        agreement=prediction.agreement,
    )


def _write(plan: PredictionPlan, predictions: Sequence[Prediction], faults: Mapping[str, str]) -> None:
    import pandas as pd

    request = plan.request
    names = {str(path): name for name, path in plan.inputs.volumes.items()}

    def told(path: str) -> str:
        """The volume's name where its path names a folder of this machine, or the patient."""
        return names[path] if plan.key else Path(path).name if Path(path).is_absolute() else path

    summary = {
        "bundles": [bundle.provenance() for bundle in plan.bundles],
        "tta": request.flips,
        "backend": request.backend,
        "device": str(plan.bundles[0].device),
        "versions": versions(request.backend),
        "volumes": [asdict(prediction) for prediction in predictions],
        "failed": {told(path): text.replace(path, told(path)) for path, text in faults.items()},
    }
    write_durably(request.out / PREDICTIONS_NAME, (json.dumps(summary, indent=2) + "\n").encode())
    columns = [field.name for field in fields(Prediction)]
    table = pd.DataFrame([asdict(prediction) for prediction in predictions], columns=columns)
    write_durably(request.out / TABLE_NAME, table.to_csv(index=False, lineterminator="\n").encode())


def _accounted(plan: PredictionPlan, used: int) -> tuple[str, ...]:
    """Every volume that was found, as used, skipped or refused."""
    volumes, skipped = plan.inputs.volumes, plan.inputs.skipped
    lines = [
        f"volumes: {len(volumes) + len(skipped)} found = {used} used + {len(skipped)} skipped + "
        f"{len(volumes) - used} refused"
    ]
    if skipped and not plan.key:
        first = ", ".join(shown(path.name) for path in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        lines.append(f"skipped, of a folder *{IMAGE_SUFFIX} is taken; others have to be named: {first}{more}")
    return tuple(lines)


def _pseudonymised(request: PredictionRequest, inputs: Inputs) -> tuple[Inputs, dict[str, str]]:
    """The volumes by their pseudonyms, and the key with all of them in it."""
    path, built = request.pseudonymise, request.out / VOLUMES
    if path is None:
        return inputs, {}
    check_place(path, request.out, *(given for given in request.inputs if given.is_dir()))
    named = [
        found
        for name in inputs.volumes
        for place in (request.out, built)
        for found in place.glob(f"{glob.escape(name)}_*.nii.gz")
    ]
    if named:
        raise PipelineError(f"{named[0].parent}: holds results under the patients' own names. Choose another --out.")
    key = key_for(path, inputs.volumes)
    renamed = {
        key[name]: built / f"{key[name]}{IMAGE_SUFFIX}" if image.parent == built else image
        for name, image in inputs.volumes.items()
    }
    return replace(inputs, volumes=dict(sorted(renamed.items()))), key  # the order of the names would tell of them


def _refuse_what_is_there(request: PredictionRequest, inputs: Inputs) -> None:
    """Keep the results of one folder about the same volumes and networks."""
    out = request.out
    refuse_file(out)
    masks = [f"{name}_{kind}.nii.gz" for name in inputs.volumes for kind in ("mask", "probability", "uncertainty")]
    there = [out / name for name in (*masks, TABLE_NAME, PREDICTIONS_NAME) if (out / name).exists()]
    if there and not request.overwrite:
        more = f", with {len(there) - 1} more" if len(there) > 1 else ""
        raise PipelineError(f"{there[0]}: is there already{more}. Choose another --out, or pass --overwrite.")
