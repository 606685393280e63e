"""Read the volume files of one patient, and write image and label on one grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation, ornt_transform
from numpy.typing import NDArray

from pipeline.cohort.cases import Case
from pipeline.cohort.listing import hash_of
from pipeline.cohort.manifest import PatientRecord
from pipeline.cohort.patients import PatientVolumes, missing_sequences, volume_names
from pipeline.errors import PipelineError
from pipeline.imaging.formats import NIFTI_SUFFIXES, join_sequences, read_volume
from pipeline.imaging.nifti import as_seen, oddities, save_image, spacing_mm
from pipeline.scripts.files import sha256_file
from pipeline.scripts.manifest import ROLES, Channels, channel_role
from pipeline.scripts.volumes import check_image, check_label, label_fault, open_nifti, voxel_fault


@dataclass(frozen=True)
class VolumeRecord(PatientRecord):
    """What the manifest records about a patient that comes as volumes, in addition to ``PatientRecord``.

    ``shape`` and ``spacing_mm`` are in the order rows, columns, slices as the networks see them. They do not depend on
    the orientation of the file.

    Args:
        spacing_mm: Distance of rows, columns and slices in mm; None if the file gives no spacing.
        lesion_ml: Volume of the lesion in ml; None if the file gives no spacing.
    """

    spacing_mm: tuple[float, float, float] | None = None
    lesion_ml: float | None = None


def read_case(root: Path, name: str, case: Case, staging: Path, label_values: Collection[float] = ()) -> PatientVolumes:
    """Check and hash a patient's files, and write image and label into ``staging``.

    Args:
        root: The source folder.
        name: The patient's id.
        case: The patient's files.
        staging: Folder for the volumes. The image keeps its affine and orientation. The label is 0 and 1 on its grid.
        label_values: Values in the label that mean lesion; empty if it holds only 0 and one other value.

    Returns:
        The patient with a record, which has the hashes of the volumes, or with errors.
    """
    patient = PatientVolumes(name)
    for path in () if case.fault else case.paths:
        try:
            patient.hashes[path] = hash_of(root / path)
        except PipelineError as error:
            patient.faults[path].append(str(error))
    if case.fault:
        patient.faults[case.paths[0]].append(case.fault)
    if patient.faults:
        return patient
    image, label = (staging / file for file in volume_names(name))
    main = case.files.get("image") or case.files["flair"]
    try:
        shape, missing, remarks = _save_image(root, case, image)
        values, lesion_voxels = _save_label(root / case.files["label"], image, label, label_values)
    except PipelineError as error:
        text = str(error).replace(str(image), main)
        for path in case.paths:  # messages name files by their path in the source folder
            text = text.replace(str(root / path), path)
        subject = next((path for path in case.paths if text.startswith(f"{path}: ")), name)
        patient.faults[subject].append(text.removeprefix(f"{subject}: "))
        return patient
    record = VolumeRecord(
        shape=shape,
        lesion_voxels=lesion_voxels,
        missing_sequences=missing,
        mask_values=values,
        sources={path: patient.hashes[path] for path in sorted(case.paths)},
        image_sha256=sha256_file(image),
        label_sha256=sha256_file(label),
    )
    return replace(patient, record=_measured(record, root / main, image, remarks))


def _save_image(root: Path, case: Case, target: Path) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """Write FLAIR, with T1 on its grid if there is one. Returns the shape, the missing sequences and remarks."""
    files = {role: root / path for role, path in case.files.items()}
    remarks: list[str] = []
    if "image" in files:
        image = _picked(files["image"], case.channels)
    else:
        image, remarks = join_sequences(files["flair"], files.get("pre"), files.get("post"))
    voxels = save_image(image, target)
    check_image(target)
    if fault := voxel_fault(voxels):
        raise PipelineError(f"{target}: {fault}.")
    seen = as_seen(voxels, target)
    return seen.shape[:3], missing_sequences(seen), remarks


def _picked(path: Path, channels: Channels) -> nib.Nifti1Image:
    """FLAIR and, if present, T1 of a volume with named channels. A volume without names keeps all channels."""
    image = read_volume(path)
    if not channels or (len(image.shape) == 3 and len(channels) == 1):
        return image
    if image.shape[3:] != (len(channels),) or max(channels) >= len(channels):
        raise PipelineError(
            f"{path}: shape {image.shape}, but dataset.json names {len(channels)} channels, "
            f"{', '.join(map(str, channels))} (expected numbers from 0). Correct the file."
        )
    numbers = {channel_role(name): number for number, name in channels.items()}
    chosen = [numbers.get(role, numbers["flair"]) for role in ROLES]
    voxels = np.asarray(image.dataobj)
    picked = voxels[..., chosen[1]] if len(set(chosen)) == 1 else voxels[..., chosen]
    return nib.Nifti1Image(picked, image.affine, image.header)


def _save_label(
    path: Path, image: Path, target: Path, label_values: Collection[float]
) -> tuple[tuple[float, ...], int]:
    """Write a label of 0 and 1 on the image's grid. Returns the values it held, and the number of lesion voxels."""
    label = read_volume(path)
    label = label.slicer[..., 0] if label.shape[3:] == (1,) else label
    if len(label.shape) != 3:
        raise PipelineError(f"{path}: shape {label.shape} (expected (I, J, K)). Give the mask, not the image.")
    voxels = np.asarray(label.dataobj)
    values = tuple(int(value) if value == int(value) else value for value in _values_of(voxels, path, label_values))
    lesion = np.isin(voxels, list(label_values)) if label_values else voxels > 0
    unit = label.header.get_xyzt_units()[0]
    label = nib.Nifti1Image(lesion.astype(np.uint8), label.affine)
    label.header.set_xyzt_units(unit)
    check_label(path, image, label)
    grid = open_nifti(image)
    turn = ornt_transform(io_orientation(label.affine), io_orientation(grid.affine))
    turned = nib.Nifti1Image(np.asarray(label.as_reoriented(turn).dataobj), grid.affine)
    turned.header.set_xyzt_units(grid.header.get_xyzt_units()[0])
    save_image(turned, target)
    return values, int(np.count_nonzero(lesion))


def _values_of(voxels: NDArray[Any], path: Path, label_values: Collection[float]) -> list[float]:
    values: list[float] = np.unique(voxels).tolist()
    if not np.isfinite(voxels).all():
        raise PipelineError(f"{path}: NaN or Inf among the voxels of the label. Replace them by 0.")
    if not label_values and label_fault(voxels):
        shown = ", ".join(f"{value:g}" for value in values[:8]) + ", ..." * (len(values) > 8)
        raise PipelineError(
            f"{path}: voxel values {shown} (expected 0 and one other). Say which are lesion, such as "
            "--label-values 1,2,4."
        )
    if len(values) > 256:
        raise PipelineError(f"{path}: {len(values)} different voxel values (expected a label). Give the mask.")
    return values


def _measured(record: VolumeRecord, source: Path, image: Path, remarks: Sequence[str]) -> VolumeRecord:
    """A record with spacing, lesion volume and warnings of the written image. ``source`` is the file with FLAIR."""
    known = spacing_mm(image)
    # NIfTI stores 32 bits, so that 0.9 is read as 0.89999998. Rounding removes this.
    spacing = (round(known[0], 6), round(known[1], 6), round(known[2], 6)) if known else None
    is_nifti = source.name.lower().endswith(NIFTI_SUFFIXES)
    warnings = [f"geometry: {line}" for line in (*remarks, *oddities(source if is_nifti else image))]
    warnings += ["spacing: the file gives none"] * (spacing is None)
    warnings += [f"missing sequence: {sequence}, FLAIR is used instead" for sequence in record.missing_sequences]
    warnings += ["no lesion: the label is empty"] * (not record.lesion_voxels)
    return replace(
        record,
        warnings=tuple(warnings),
        spacing_mm=spacing,
        lesion_ml=round(record.lesion_voxels * float(np.prod(spacing)) / 1000, 6) if spacing else None,
    )
