"""The files of one patient -> its volumes and its record, or every fault of them; with masks or without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import read_bytes
from pipeline.records import PatientRecord, SliceFile
from pipeline.scripts.files import sha256_bytes
from pipeline.slices import base_name, by_preference, missing_numbers, number_list
from pipeline.volumes import Pixels, decode_slice, nifti_bytes

MAX_VOXELS = 2**28
"""A volume of 2^28 voxels takes 1 GiB with its label; a patient of the published data takes 2^22."""

_CHANNEL_PAIRS = ((0, 1, "pre-contrast"), (2, 1, "post-contrast"))


@dataclass
class Patient:
    """One patient while it is read.

    Args:
        name: patient id.
        files: every slice file that bears the id.
        faults: path, or the patient id -> messages.
        skipped: path -> reason.
        hashes: path -> SHA-256, of all that could be read.
        record: set where there is no fault.
    """

    name: str
    files: list[SliceFile]
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    record: PatientRecord | None = None


def read_patient(
    root: Path,
    name: str,
    files: list[SliceFile],
    *,
    allow_gaps: bool,
    skip_unpaired: bool,
    keep: Callable[[str, bytes], None] | None,
) -> Patient:
    """Check, hash and decode all files of a patient, each read once, and build its two volumes.

    Args:
        root: source folder.
        name: patient id.
        files: its images and masks in any order, copies included.
        allow_gaps: a gap in the slice numbers is a warning.
        skip_unpaired: an image without mask, or a mask without image, is skipped.
        keep: takes the file name and the content of each finished volume; None where no volume is wanted.
    """
    patient = Patient(name, files)
    pixels: dict[SliceFile, Pixels] = {}
    winners = _without_copies(root, patient, pixels)
    images = {file.number: file for file in winners if file.kind == "image"}
    masks = {file.number: file for file in winners if file.kind == "mask"}
    warnings: list[str] = []
    numbers = _paired(patient, images, masks, skip_unpaired)
    alone = sorted({*images, *masks} - set(numbers))
    if alone:
        warnings.append(f"unpaired: image or mask of slice(s) {number_list(alone)} skipped")
    _check_numbers(patient, numbers, {*images, *masks}, allow_gaps, warnings)
    if not patient.faults:
        _check_sizes(patient, [(images[n], masks[n]) for n in numbers], pixels)
    if not patient.faults:
        _finish(patient, [(images[n], masks[n]) for n in numbers], pixels, warnings, keep)
    return patient


def read_images(root: Path, patient: Patient, *, allow_gaps: bool) -> tuple[Pixels | None, list[str]]:
    """Check and decode the images of a patient who has no truth, each read once; masks are passed over.

    Args:
        root: source folder.
        patient: with its files; faults and hashes are entered here.
        allow_gaps: a gap in the slice numbers is a warning.

    Returns:
        (H, W, D, 3) uint8, None where there is a fault; and what is odd but used.
    """
    patient.files = [file for file in patient.files if file.kind == "image"]
    pixels: dict[SliceFile, Pixels] = {}
    images = {file.number: file for file in _without_copies(root, patient, pixels)}
    warnings: list[str] = []
    _check_numbers(patient, sorted(images), set(images), allow_gaps, warnings)
    ordered = [images[number] for number in sorted(images)]
    if not patient.faults:
        _check_sizes(patient, [(image, None) for image in ordered], pixels)
    if patient.faults:
        return None, warnings
    stack = np.stack([pixels.pop(image) for image in ordered])
    warnings += [f"missing sequence: {name}" for name in _missing_sequences(stack)]
    return stack.transpose(1, 2, 0, 3), warnings


def _without_copies(root: Path, patient: Patient, pixels: dict[SliceFile, Pixels]) -> list[SliceFile]:
    """Read every file; of equal copies keep the shallowest. Fills hashes, skipped, faults and ``pixels``."""
    groups: dict[tuple[int, str], list[SliceFile]] = defaultdict(list)
    for file in patient.files:
        groups[file.number, file.kind].append(file)
    winners = []
    for (number, kind), group in sorted(groups.items()):
        first, *others = sorted(group, key=by_preference)
        winners.append(first)
        for file in (first, *others):
            try:
                data = read_bytes(root / file.path)
                patient.hashes[str(file.path)] = sha256_bytes(data)
                if file is first:
                    pixels[file] = _checked(data, file)
            except PipelineError as error:
                patient.faults[str(file.path)].append(str(error))
        for other in others:
            _judge_copy(patient, first, other, f"{kind} of slice {number}")
    return winners


def _checked(data: bytes, file: SliceFile) -> Pixels:
    """Decoded pixels; a mask comes back with 0 and its own positive value.

    Raises:
        PipelineError: undecodable, or a mask of other values than {0, 255} or {0, 1}.
    """
    pixels = decode_slice(data, file.kind)
    if file.kind == "mask":
        values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
        if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
            raise PipelineError(
                f"mask values {number_list(values)} (expected 0 and 255, or 0 and 1). Binarise the mask."
            )
    return pixels


def _judge_copy(patient: Patient, first: SliceFile, other: SliceFile, what: str) -> None:
    """Skip an equal copy; refuse a second spelling or another content."""
    paths = str(first.path), str(other.path)
    if base_name(first) != base_name(other):
        patient.faults[paths[1]].append(f"{what} stands twice, also as {paths[0]}. Remove one of the two spellings.")
    elif all(path in patient.hashes for path in paths):
        if patient.hashes[paths[0]] == patient.hashes[paths[1]]:
            patient.skipped[paths[1]] = f"duplicate: same content as {paths[0]}"
        else:
            patient.faults[paths[1]].append(
                f"{what} differs in content from {paths[0]} (expected equal copies). Remove the wrong one."
            )


def _paired(
    patient: Patient, images: dict[int, SliceFile], masks: dict[int, SliceFile], skip_unpaired: bool
) -> list[int]:
    """Ascending numbers that have image and mask; the rest is skipped or refused."""
    for own, other, lacking in ((images, masks, "mask"), (masks, images, "image")):
        for number in sorted(own.keys() - other.keys()):
            path = own[number].path
            if skip_unpaired:
                patient.skipped[str(path)] = f"unpaired: slice {number} has no {lacking}"
            else:
                suffix = "_mask" if lacking == "mask" else ""
                patient.faults[str(path)].append(
                    f"slice {number} has no {lacking} (expected {patient.name}_{number}{suffix}.tif). "
                    "Restore it or pass --skip-unpaired."
                )
    numbers = sorted(images.keys() & masks.keys())
    if not numbers:
        patient.faults[patient.name].append("no slice with both image and mask. Restore them or remove the patient.")
    return numbers


def _check_numbers(
    patient: Patient, numbers: list[int], present: set[int], allow_gaps: bool, warnings: list[str]
) -> None:
    """Gaps and an odd first number; a gap that skipping made is a warning, as the user asked for it."""
    gaps = missing_numbers(present)
    if gaps and not allow_gaps:
        patient.faults[patient.name].append(
            f"slice(s) {number_list(gaps)} missing between {min(present)} and {max(present)}. "
            "Restore them or pass --allow-gaps."
        )
    left_out = missing_numbers(numbers)
    if left_out:
        warnings.append(f"gap: slice(s) {number_list(left_out)} missing, neighbours are joined in the volume")
    if numbers and numbers[0] != 1:
        warnings.append(f"first slice: numbering starts at {numbers[0]}, not at 1")


def _check_sizes(
    patient: Patient, pairs: Sequence[tuple[SliceFile, SliceFile | None]], pixels: dict[SliceFile, Pixels]
) -> None:
    """All slices of one size, each mask there is of its image's size, the volume within ``MAX_VOXELS``."""
    expected = pixels[pairs[0][0]].shape[:2]
    for image, mask in pairs:
        size = pixels[image].shape[:2]
        mask_size = pixels[mask].shape if mask else size
        if mask and size != mask_size:
            patient.faults[str(mask.path)].append(
                f"mask of {_size(mask_size)} on an image of {_size(size)} (expected the same). Replace one of them."
            )
        if size != expected:
            patient.faults[str(image.path)].append(
                f"slice of {_size(size)}, but slice {pairs[0][0].number} is {_size(expected)} "
                "(expected one size per patient). Replace the slice."
            )
    if expected[0] * expected[1] * len(pairs) > MAX_VOXELS or len(pairs) > np.iinfo(np.int16).max:
        patient.faults[patient.name].append(
            f"{len(pairs)} slices of {_size(expected)} (expected at most {MAX_VOXELS} voxels). "
            "Crop or split the patient."
        )


def _size(shape: tuple[int, ...]) -> str:
    """``H x W px``."""
    return f"{shape[0]} x {shape[1]} px"


def _finish(
    patient: Patient,
    pairs: list[tuple[SliceFile, SliceFile]],
    pixels: dict[SliceFile, Pixels],
    warnings: list[str],
    keep: Callable[[str, bytes], None] | None,
) -> None:
    """Stack the slices, look for what is odd but usable, hand out the volumes and set the record."""
    stack = np.stack([pixels.pop(image) for image, _ in pairs])
    masks = np.stack([pixels.pop(mask) for _, mask in pairs])
    values = tuple(np.flatnonzero(np.bincount(masks.ravel(), minlength=256)).tolist())
    label = (masks != 0).astype(np.uint8)
    missing = _missing_sequences(stack)
    black = [image.number for (image, _), plane in zip(pairs, stack, strict=True) if not plane.any()]
    lesion_voxels = int(np.count_nonzero(label))
    if black:
        warnings.append(f"black slices: {number_list(black)}")
    if {1, 255} <= set(values):
        warnings.append("mask values: some slices hold 0 and 1, others 0 and 255")
    warnings += [f"missing sequence: {name}" for name in missing]
    if not lesion_voxels:
        warnings.append("no lesion: the label is empty")
    paths = sorted(str(file.path) for pair in pairs for file in pair)
    record = PatientRecord(
        patient=patient.name,
        shape=(stack.shape[1], stack.shape[2], stack.shape[0]),
        lesion_voxels=lesion_voxels,
        missing_sequences=missing,
        mask_values=values,
        warnings=tuple(warnings),
        sources={path: patient.hashes[path] for path in paths},
    )
    if keep:
        image_file, label_file = volume_names(patient.name)
        image_bytes = nifti_bytes(stack.transpose(1, 2, 0, 3))
        keep(image_file, image_bytes)
        label_bytes = nifti_bytes(label.transpose(1, 2, 0))
        keep(label_file, label_bytes)
        record = replace(record, image_sha256=sha256_bytes(image_bytes), label_sha256=sha256_bytes(label_bytes))
    patient.record = record


def _missing_sequences(stack: Pixels) -> tuple[str, ...]:
    """Sequences that repeat another throughout: the publishers put FLAIR in place of a missing one.

    Args:
        stack: (D, H, W, 3) uint8.
    """
    missing = tuple(
        name for channel, flair, name in _CHANNEL_PAIRS if np.array_equal(stack[..., channel], stack[..., flair])
    )
    if not missing and np.array_equal(stack[..., 0], stack[..., 2]):
        return ("pre-contrast=post-contrast",)
    return missing


def volume_names(name: str) -> tuple[str, str]:
    """File names of a patient's image and label volume."""
    return f"{name}_image.nii.gz", f"{name}_label.nii.gz"
