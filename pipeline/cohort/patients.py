"""Stack the slice files of one patient into volumes, with or without masks, and report every error in them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.cohort.listing import read_bytes
from pipeline.cohort.manifest import PatientRecord
from pipeline.cohort.names import SliceFile, by_preference, missing_numbers, number_list
from pipeline.errors import PipelineError
from pipeline.imaging.pictures import Pixels, decode_slice
from pipeline.scripts.files import sha256_bytes
from pipeline.scripts.manifest import CHANNELS, FLAIR, IMAGE_SUFFIX, LABEL_SUFFIX
from pipeline.scripts.volumes import MAX_VALUES

Pairs = Sequence[tuple[SliceFile, SliceFile | None]]
"""Image and mask of each slice, by ascending number. The mask is None if masks are not read."""


@dataclass(frozen=True)
class PatientVolumes:
    """The files of one patient after reading. After an error, there are no record and no volumes.

    Args:
        name: The patient's id.
        faults: Error messages, by path or by the patient's id.
        skipped: Why a file is not used, by path.
        hashes: SHA-256 of every file that could be read, by path.
        warnings: What is unusual about the patient, each as ``kind: message``.
        record: What the manifest records about the patient. For slices it lacks the hashes of the volumes.
        image: (H, W, D, 3) uint8 in the order of CHANNELS; None for patients that come as volumes.
        label: (H, W, D) uint8, values 0 and 1; None if masks are not read, or for patients that come as volumes.
    """

    name: str
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    record: PatientRecord | None = None
    image: Pixels | None = None
    label: Pixels | None = None


def read_patient(
    root: Path,
    name: str,
    files: Sequence[SliceFile],
    *,
    masks: bool = True,
    allow_gaps: bool = False,
    skip_unpaired: bool = False,
) -> PatientVolumes:
    """The volumes of one patient, stacked from slice files that are checked, hashed and decoded.

    Args:
        root: The source folder.
        name: The patient's id.
        files: The patient's slice files. Without ``masks``, they are one image or more.
        masks: Whether each image needs a mask.
        allow_gaps: Accept missing slice numbers, with a warning.
        skip_unpaired: Skip images without a mask and masks without an image.

    Returns:
        The patient, with volumes and record, or with errors.
    """
    patient = PatientVolumes(name)
    winners, pixels = _without_copies(root, patient, files)
    images = {file.number: file for file in winners if file.kind == "image"}
    labels = {file.number: file for file in winners if file.kind == "mask"}
    numbers = _paired(patient, images, labels, skip_unpaired) if masks else sorted(images)
    _check_numbers(patient, numbers, {*images, *labels}, allow_gaps)
    pairs = [(images[number], labels.get(number)) for number in numbers]
    if not patient.faults:
        _check_sizes(patient, pairs, pixels)
    return patient if patient.faults else _stacked(patient, pairs, pixels)


def _without_copies(
    root: Path, patient: PatientVolumes, files: Sequence[SliceFile]
) -> tuple[list[SliceFile], dict[SliceFile, Pixels]]:
    """Read every file, and return the files to use and their pixels. Of equal copies, one is used."""
    groups: dict[tuple[int, str], list[SliceFile]] = defaultdict(list)
    for file in files:
        groups[file.number, file.kind].append(file)
    winners: list[SliceFile] = []
    pixels: dict[SliceFile, Pixels] = {}
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
    return winners, pixels


def _checked(data: bytes, file: SliceFile) -> Pixels:
    """The decoded pixels. A mask keeps its values: 0, and 1 or 255."""
    pixels = decode_slice(data, file.kind)
    if file.kind == "mask":
        values = set(np.unique(pixels).tolist())
        if not (values <= {0, 255} or values <= {0, 1}):
            raise PipelineError(f"mask values {number_list(values)} (expected 0 and 255, or 0 and 1). Binarise it.")
    return pixels


def _judge_copy(patient: PatientVolumes, first: SliceFile, other: SliceFile, what: str) -> None:
    """Skip an equal copy. Refuse a second spelling of the number, or a copy with other content."""
    kept, path = str(first.path), str(other.path)
    names = {unicodedata.normalize("NFC", file.path.name) for file in (first, other)}
    hashes = {patient.hashes.get(kept), patient.hashes.get(path)}
    if len(names) == 2:
        patient.faults[path].append(f"{what} exists twice, also as {kept}. Remove one of the two files.")
    elif len(hashes) == 1:
        patient.skipped[path] = f"duplicate: same content as {kept}"
    elif None not in hashes:
        patient.faults[path].append(f"{what} differs in content from {kept}. Remove the wrong one.")


def _paired(
    patient: PatientVolumes, images: dict[int, SliceFile], masks: dict[int, SliceFile], skip_unpaired: bool
) -> list[int]:
    """The numbers with both image and mask, in ascending order. All other slices are skipped or refused."""
    for own, other, lacking, suffix in ((images, masks, "mask", "_mask"), (masks, images, "image", "")):
        for number in sorted(own.keys() - other.keys()):
            path = str(own[number].path)
            if skip_unpaired:
                patient.skipped[path] = f"unpaired: slice {number} has no {lacking}"
            else:
                patient.faults[path].append(
                    f"slice {number} has no {lacking} (expected {patient.name}_{number}{suffix}.tif). "
                    "Restore it or pass --skip-unpaired."
                )
    numbers = sorted(images.keys() & masks.keys())
    if not numbers:
        patient.faults[patient.name].append("no slice with both image and mask. Restore them or remove the patient.")
    alone = images.keys() ^ masks.keys()
    if alone:
        patient.warnings.append(f"unpaired: image or mask of slice(s) {number_list(alone)} skipped")
    return numbers


def _check_numbers(patient: PatientVolumes, numbers: list[int], present: set[int], allow_gaps: bool) -> None:
    """Check the slice numbers for gaps and an unusual first number.

    A gap that comes from skipping is only a warning, because the user asked for it.
    """
    gaps = missing_numbers(present)
    if gaps and not allow_gaps:
        patient.faults[patient.name].append(
            f"slice(s) {number_list(gaps)} missing between {min(present)} and {max(present)}. "
            "Restore them or pass --allow-gaps."
        )
    left_out = missing_numbers(numbers)
    if left_out:
        patient.warnings.append(f"gap: slice(s) {number_list(left_out)} missing, neighbours are joined in the volume")
    if numbers and numbers[0] != 1:
        patient.warnings.append(f"first slice: numbering starts at {numbers[0]}, not at 1")


def _check_sizes(patient: PatientVolumes, pairs: Pairs, pixels: dict[SliceFile, Pixels]) -> None:
    """Check that all slices and masks have one size, and that the volume has at most ``MAX_VALUES`` values."""
    sizes = {file: "{} x {} px".format(*array.shape) for file, array in pixels.items()}
    first = pairs[0][0]
    for image, mask in pairs:
        if mask and sizes[mask] != sizes[image]:
            patient.faults[str(mask.path)].append(f"mask of {sizes[mask]} on an image of {sizes[image]}. Replace one.")
        if sizes[image] != sizes[first]:
            fault = f"slice of {sizes[image]}, but slice {first.number} is {sizes[first]}. Replace the slice."
            patient.faults[str(image.path)].append(fault)
    height, width = pixels[first].shape[:2]
    most = MAX_VALUES // len(CHANNELS)
    if height * width * len(pairs) > most or len(pairs) > np.iinfo(np.int16).max:
        patient.faults[patient.name].append(
            f"{len(pairs)} slices of {sizes[first]} (expected at most {most} voxels). Crop or split the patient."
        )


def _stacked(patient: PatientVolumes, pairs: Pairs, pixels: dict[SliceFile, Pixels]) -> PatientVolumes:
    """The patient with volumes and record, and with warnings about what is unusual but usable."""
    image: Pixels = np.stack([pixels.pop(file) for file, _ in pairs]).transpose(1, 2, 0, 3)
    masks = [mask for _, mask in pairs if mask]
    label: Pixels | None = None
    values: list[int] = []
    if masks:
        raw = np.stack([pixels.pop(mask) for mask in masks]).transpose(1, 2, 0)
        values = np.unique(raw).tolist()
        label = (raw != 0).astype(np.uint8)
        black = [file.number for z, (file, _) in enumerate(pairs) if not image[:, :, z].any()]
        if black:
            patient.warnings.append(f"black slices: {number_list(black)}")
    if {1, 255} <= set(values):
        patient.warnings.append("mask values: some slices hold 0 and 1, others 0 and 255")
    missing = missing_sequences(image)
    patient.warnings.extend(f"missing sequence: {name}, FLAIR is used instead" for name in missing)
    if label is not None and not label.any():
        patient.warnings.append("no lesion: the label is empty")
    used = sorted(str(file.path) for pair in pairs for file in pair if file)
    record = PatientRecord(
        shape=image.shape[:3],
        lesion_voxels=0 if label is None else int(label.sum()),
        missing_sequences=missing,
        mask_values=tuple(values),
        warnings=tuple(patient.warnings),
        sources={path: patient.hashes[path] for path in used},
    )
    return replace(patient, record=record, image=image, label=label)


def missing_sequences(image: Pixels) -> tuple[str, ...]:
    """The sequences that are missing in an image, because another one is repeated in their place.

    In the published data, FLAIR takes the place of a missing sequence.

    Args:
        image: (H, W, D, 3), in the order of CHANNELS.

    Returns:
        Names of the channels that repeat FLAIR, or ``pre-contrast=post-contrast`` if these two are equal.
    """
    missing = tuple(CHANNELS[index] for index in (0, 2) if np.array_equal(image[..., index], image[..., FLAIR]))
    if not missing and np.array_equal(image[..., 0], image[..., 2]):
        return ("pre-contrast=post-contrast",)
    return missing


def volume_names(name: str) -> tuple[str, str]:
    """The file names of a patient's image and label volume."""
    return f"{name}{IMAGE_SUFFIX}", f"{name}{LABEL_SUFFIX}"
