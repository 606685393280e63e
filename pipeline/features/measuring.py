"""Measure the masks of a prediction, an evaluation or a manifest, and write the tables of their shape features."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.cohort.manifest import read_manifest, select
from pipeline.errors import PipelineError
from pipeline.features.association import Agreement, Association, ClinicalTable, agreement, associations, read_clinical
from pipeline.features.shape import ShapeFeatures, shape_features
from pipeline.files import MASK_FOLDER, SUMMARY_NAME
from pipeline.imaging.nifti import load_label, spacing_mm
from pipeline.progress import progress
from pipeline.scoring.protocols import largest_component
from pipeline.scoring.results import read_summary
from pipeline.scripts.faults import shown
from pipeline.scripts.files import locked, sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import LABEL_SUFFIX, MANIFEST_NAME, MASK_SUFFIX, VOLUMES

logger = logging.getLogger(__name__)

PREDICTED, TRUE = "predicted", "true"
FEATURES = tuple(item.name for item in dataclasses.fields(ShapeFeatures))
PAPER_FEATURES = FEATURES[:3]
"""The features of Buda et al. 2019, which are tested by default."""
SHAPE_COLUMNS = ("patient", "mask", *FEATURES)
ASSOCIATION_COLUMNS = (
    *("mask", "feature", "column", "patients", "groups"),
    *("fisher_p", "fisher_q", "cramers_v", "kruskal_p", "kruskal_q", "epsilon_squared"),
)
SHAPE_CSV, SHAPE_JSON, ASSOCIATIONS_CSV, PAGE_NAME = "shape.csv", "shape.json", "associations.csv", "shape.html"


@dataclass(frozen=True)
class ShapeResult:
    """The shape of all lesions of a cohort.

    Args:
        shapes: ``predicted`` or ``true`` -> patient -> features.
        unknown_spacing: Patients whose voxel size is not known, so that features in mm are empty.
        given_spacing: Patients whose files do not say the voxel size, so that the given one counts.
        agreements: Agreement of the features between predicted and true masks; empty if only one kind is there.
        clinical: The columns of the clinical table; None without one.
        associations: ``predicted`` or ``true`` -> the tested pairs, the smallest p value first.
        seen_in_training: Patients that the networks of an evaluation were trained on.
    """

    shapes: dict[str, dict[str, ShapeFeatures]]
    unknown_spacing: list[str] = field(default_factory=list)
    given_spacing: list[str] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    clinical: ClinicalTable | None = None
    associations: dict[str, list[Association]] = field(default_factory=dict)
    seen_in_training: list[str] = field(default_factory=list)


def measure_shapes(
    masks: str | Path,
    out: str | Path,
    *,
    clinical: str | Path | None = None,
    columns: Sequence[str] = (),
    features: Sequence[str] = PAPER_FEATURES,
    spacing: Sequence[float] | None = None,
    only_largest: bool = False,
    seed: int = 0,
    draw: Callable[[ShapeResult], object] | None = None,
) -> ShapeResult:
    """Measure every mask, test the features against a clinical table, and write ``shape.csv`` and ``shape.json``.

    Args:
        masks: A folder of ``lgg-flair predict`` or ``lgg-flair evaluate``, or a manifest or its folder. A folder of an
            evaluation has predicted and true masks, which are compared.
        out: The folder to write the tables to.
        clinical: A CSV file, such as the published ``data.csv``; None to test nothing.
        columns: Columns of the file to test; empty for every column that divides patients into 2 to 10 groups.
        features: Names of the features to test.
        spacing: Distance of rows, columns and slices in mm, for masks whose files do not say it; None to leave out
            features in mm.
        only_largest: Measure only the largest component of each mask. ``lgg-flair predict`` keeps no other anyway, but
            true masks may have several.
        seed: Seed of the random tables of Fisher's exact test.
        draw: A function that draws a page of the result, before any other run can write to ``out``.

    Returns:
        The features of all masks, their agreement, and the associations.

    Raises:
        PipelineError: A mask, a table or an option cannot be used; the message says which.

    Examples:
        >>> import pipeline
        >>> result = pipeline.measure_shapes("data_manifest", "shapes")
        >>> sorted(result.shapes)
        ['true']
    """
    if unknown := [name for name in features if name not in FEATURES]:
        raise PipelineError(f"--features {unknown[0]} (expected some of {', '.join(FEATURES)}). Correct the name.")
    if spacing is not None and not all(0 < part < math.inf for part in spacing):
        raise PipelineError(
            f"--spacing {' '.join(f'{part:g}' for part in spacing)} (expected distances above 0 mm). Correct it."
        )
    if seed < 0:
        raise PipelineError(f"--seed {seed} (expected 0 or more). Pass another number.")
    found = find_masks(Path(masks))
    patients = sorted({patient for paths in found.values() for patient in paths})
    table = None if clinical is None else read_clinical(clinical, patients, columns)
    shapes: dict[str, dict[str, ShapeFeatures]] = {kind: {} for kind in found}
    without: set[str] = set()
    every = [(kind, patient, path) for kind, paths in found.items() for patient, path in paths.items()]
    for kind, patient, path in progress(every, "shape", "mask"):
        known = spacing_mm(path)
        if known is None:
            without.add(patient)
        mask = load_label(path)
        shapes[kind][patient] = shape_features(largest_component(mask) if only_largest else mask, known or spacing)
    unknown, given = (sorted(without), []) if spacing is None else ([], sorted(without))
    result = ShapeResult(
        shapes, unknown, given, _agreements(shapes), seen_in_training=_seen_in_training(Path(masks), patients)
    )
    out = Path(out)
    with locked(out, ()):
        facts = {
            **{"masks": Path(masks).name, "clinical": _named(clinical), "seed": seed, "spacing_mm": spacing},
            "only_largest": only_largest,
        }
        with writing_errors(out / PAGE_NAME):
            (out / PAGE_NAME).unlink(missing_ok=True)  # of earlier tables
        _write(result, out, facts)
        if table:
            result = dataclasses.replace(result, clinical=table, associations=_tested(shapes, table, features, seed))
            _write(result, out, facts)
        if draw:
            draw(result)
    return result


def _tested(
    shapes: Mapping[str, Mapping[str, ShapeFeatures]], table: ClinicalTable, features: Sequence[str], seed: int
) -> dict[str, list[Association]]:
    """Kind of mask -> associations. A kind without any is left out with a warning, unless no kind has one."""
    tested, faults = {}, []
    for kind, of_kind in shapes.items():
        try:
            tested[kind] = associations({name: values(of_kind, name) for name in features}, table, seed)
        except PipelineError as error:
            faults.append(f"{kind} masks: {error}")
    if not tested:
        raise PipelineError(faults[0])
    for fault in faults:
        logger.warning("%s", fault)
    return tested


def _seen_in_training(source: Path, patients: Sequence[str]) -> list[str]:
    """The patients that the networks of an evaluation were trained on; empty for other sources."""
    if not (source / SUMMARY_NAME).is_file():
        return []
    return sorted(set(read_summary(source)["seen_in_training"]) & set(patients))


def find_masks(source: Path) -> dict[str, dict[str, Path]]:
    """The mask files of a prediction, an evaluation or a manifest.

    Returns:
        ``predicted`` and, if they are known, ``true`` -> patient -> file. A manifest has only ``true``.

    Raises:
        PipelineError: There are no masks.
    """
    if source.name.endswith(MASK_SUFFIX) and source.is_file():
        return {PREDICTED: {source.name.removesuffix(MASK_SUFFIX): source}}
    if source.name.endswith((".nii", ".nii.gz")):
        raise PipelineError(f"{source}: the name does not end in {MASK_SUFFIX} (expected of a mask). Rename the file.")
    if source.is_file() or (source / MANIFEST_NAME).is_file():
        return {TRUE: {volume.patient: volume.label for volume in select(read_manifest(source), "all")}}
    for predicted, true in ((source / MASK_FOLDER, source / VOLUMES), (source, None)):
        masks = dict(_files(predicted, MASK_SUFFIX))
        if masks:
            labels = dict(_files(true, LABEL_SUFFIX)) if true else {}
            return {PREDICTED: masks, TRUE: labels} if labels else {PREDICTED: masks}
    raise PipelineError(
        f"{source}: holds no masks NAME{MASK_SUFFIX}. Give a folder of lgg-flair predict or evaluate, or a manifest."
    )


def _files(folder: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob(f"*{suffix}")):
        if not path.name.startswith("."):  # such as ._x of macOS
            yield shown(path.name.removesuffix(suffix)), path


def values(shapes: Mapping[str, ShapeFeatures], feature: str) -> dict[str, float]:
    """Patient -> value of a feature, for the patients that have it."""
    found = {patient: getattr(shape, feature) for patient, shape in shapes.items()}
    return {patient: float(value) for patient, value in found.items() if value is not None}


def _agreements(shapes: Mapping[str, Mapping[str, ShapeFeatures]]) -> list[Agreement]:
    if set(shapes) != {PREDICTED, TRUE}:
        return []
    pairs = ((name, values(shapes[PREDICTED], name), values(shapes[TRUE], name)) for name in FEATURES)
    return [found for pair in pairs if (found := agreement(*pair))]


def _named(clinical: str | Path | None) -> dict[str, str] | None:
    """The name and hash of the clinical table. Its content is not written anywhere."""
    return None if clinical is None else {"name": Path(clinical).name, "sha256": sha256_file(Path(clinical))}


def _write(result: ShapeResult, out: Path, facts: Mapping[str, Any]) -> None:
    rows = [
        {"patient": patient, "mask": kind, **asdict(shape)}
        for kind, shapes in result.shapes.items()
        for patient, shape in shapes.items()
    ]
    _write_csv(out / SHAPE_CSV, rows, SHAPE_COLUMNS)
    tested = [
        {**asdict(one), "mask": kind, "groups": "; ".join(f"{name}: {count}" for name, count in one.groups.items())}
        for kind, found in result.associations.items()
        for one in found
    ]
    if tested:
        _write_csv(out / ASSOCIATIONS_CSV, tested, ASSOCIATION_COLUMNS)
    else:
        (out / ASSOCIATIONS_CSV).unlink(missing_ok=True)
    content = {
        **facts,
        "patients": len({row["patient"] for row in rows}),
        "unknown_spacing": result.unknown_spacing,
        "given_spacing": result.given_spacing,
        "seen_in_training": result.seen_in_training,
        "matched": result.clinical and result.clinical.matched,
        "skipped_columns": result.clinical and result.clinical.skipped,
        "agreement": [asdict(one) for one in result.agreements],
        "associations": {kind: [asdict(one) for one in found] for kind, found in result.associations.items()},
        "shapes": rows,
    }
    write_durably(out / SHAPE_JSON, (json.dumps(content, indent=2) + "\n").encode())


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    buffer = io.StringIO()
    pd.DataFrame(rows, columns=[*columns]).to_csv(buffer, index=False, lineterminator="\n")
    write_durably(path, buffer.getvalue().encode())
