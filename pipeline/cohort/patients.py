"""The slice files of one patient -> its volumes, or every fault of them; with masks or without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cohort.listing import read_bytes
from pipeline.cohort.names import SliceFile, base_name, by_preference, missing_numbers, number_list
from pipeline.errors import PipelineError
from pipeline.imaging.tiff import Pixels, decode_slice
from pipeline.scripts.files import sha256_bytes
from pipeline.scripts.manifest import CHANNELS, IMAGE_SUFFIX, LABEL_SUFFIX

MAX_VOXELS = 2**28
"""A volume of 2^28 voxels takes 1 GiB with its label; a patient of the published data takes 2^22."""


@dataclass(frozen=True)
class PatientVolumes:
    """One patient's slices, read and stacked.

    Args:
        name: The patient's id.
        files: The slice files that were looked at.
        image: (H, W, D, 3) uint8, channels pre-contrast, FLAIR, post-contrast; None where there is a fault.
        label: (H, W, D) uint8, 0 and 1; None where there is a fault, or masks were not looked at.
        mask_values: Grey values found in the masks, ascending.
        missing_sequences: Names of sequences that repeat another channel throughout.
        warnings: What is odd but used.
        sources: Path of each file in the volumes, relative to the source folder -> SHA-256.
        hashes: The same of every file that could be read.
        skipped: Path -> why the file is not used.
        faults: Path, or the patient's id -> messages.
    """

    name: str
    files: tuple[SliceFile, ...]
    image: Pixels | None
    label: Pixels | None
    mask_values: tuple[int, ...]
    missing_sequences: tuple[str, ...]
    warnings: tuple[str, ...]
    sources: Mapping[str, str]
    hashes: Mapping[str, str]
    skipped: Mapping[str, str]
    faults: Mapping[str, list[str]]


@dataclass
class _Reading:
    """A patient while it is read; the fields are those of ``PatientVolumes``."""

    name: str
    files: list[SliceFile]
    pixels: dict[SliceFile, Pixels] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_patient(
    root: Path,
    name: str,
    files: Sequence[SliceFile],
    *,
    masks: bool = True,
    allow_gaps: bool = False,
    skip_unpaired: bool = False,
) -> PatientVolumes:
    """Check, hash and decode the files of a patient, each read once, and stack them."""
    patient = _Reading(name, [file for file in files if masks or file.kind == "image"])
    winners = _without_copies(root, patient)
    images = {file.number: file for file in winners if file.kind == "image"}
    labels = {file.number: file for file in winners if file.kind == "mask"}
    numbers = _paired(patient, images, labels, skip_unpaired) if masks else sorted(images)
    if not numbers and not masks:
        patient.faults[name].append("no image of a slice. Restore the images or remove the patient.")
    alone = sorted({*images, *labels} - set(numbers))
    if alone:
        patient.warnings.append(f"unpaired: image or mask of slice(s) {number_list(alone)} skipped")
    _check_numbers(patient, numbers, {*images, *labels}, allow_gaps)
    pairs = [(images[number], labels.get(number)) for number in numbers]
    if not patient.faults:
        _check_sizes(patient, pairs)
    return _stacked(patient, pairs)


def _without_copies(root: Path, patient: _Reading) -> list[SliceFile]:
    """Read every file; of equal copies keep the shallowest."""
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
                    patient.pixels[file] = _checked(data, file)
            except PipelineError as error:
                patient.faults[str(file.path)].append(str(error))
        for other in others:
            _judge_copy(patient, first, other, f"{kind} of slice {number}")
    return winners


def _checked(data: bytes, file: SliceFile) -> Pixels:
    """Decoded pixels; a mask comes back with 0 and its own positive value."""
    pixels = decode_slice(data, file.kind)
    if file.kind == "mask":
        values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
        if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
            raise PipelineError(
                f"mask values {number_list(values)} (expected 0 and 255, or 0 and 1). Binarise the mask."
            )
    return pixels


def _judge_copy(patient: _Reading, first: SliceFile, other: SliceFile, what: str) -> None:
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
    patient: _Reading, images: dict[int, SliceFile], masks: dict[int, SliceFile], skip_unpaired: bool
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


def _check_numbers(patient: _Reading, numbers: list[int], present: set[int], allow_gaps: bool) -> None:
    """Gaps and an odd first number; a gap that skipping made is a warning, as the user asked for it."""
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


def _check_sizes(patient: _Reading, pairs: Sequence[tuple[SliceFile, SliceFile | None]]) -> None:
    """All slices of one size, each mask there is of its image's size, the volume within ``MAX_VOXELS``."""
    pixels = patient.pixels
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


def _stacked(patient: _Reading, pairs: Sequence[tuple[SliceFile, SliceFile | None]]) -> PatientVolumes:
    """The volumes of a patient without faults, and what is odd but usable about them."""
    image: Pixels | None = None
    label: Pixels | None = None
    values: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    masks = [mask for _, mask in pairs if mask]
    if not patient.faults:
        image = np.stack([patient.pixels.pop(file) for file, _ in pairs]).transpose(1, 2, 0, 3)
        missing = _missing_sequences(image)
        if masks:
            raw = np.stack([patient.pixels.pop(mask) for mask in masks]).transpose(1, 2, 0)
            values = tuple(np.flatnonzero(np.bincount(raw.ravel(), minlength=256)).tolist())
            label = (raw != 0).astype(np.uint8)
            black = [file.number for z, (file, _) in enumerate(pairs) if not image[:, :, z].any()]
            if black:
                patient.warnings.append(f"black slices: {number_list(black)}")
        if {1, 255} <= set(values):
            patient.warnings.append("mask values: some slices hold 0 and 1, others 0 and 255")
        patient.warnings += [f"missing sequence: {name}" for name in missing]
        if label is not None and not label.any():
            patient.warnings.append("no lesion: the label is empty")
    used = sorted(str(file.path) for file in (*(file for file, _ in pairs), *masks))
    return PatientVolumes(
        name=patient.name,
        files=tuple(patient.files),
        image=image,
        label=label,
        mask_values=values,
        missing_sequences=missing,
        warnings=tuple(patient.warnings),
        sources={} if patient.faults else {path: patient.hashes[path] for path in used},
        hashes=patient.hashes,
        skipped=patient.skipped,
        faults=dict(patient.faults),
    )


def _missing_sequences(image: Pixels) -> tuple[str, ...]:
    """Sequences that repeat another throughout: the publishers put FLAIR in place of a missing one.

    Args:
        image: (H, W, D, 3) uint8.
    """
    pre, flair, post = (image[..., channel] for channel in range(len(CHANNELS)))
    repeats = ((CHANNELS[0], pre), (CHANNELS[2], post))
    missing = tuple(name for name, channel in repeats if np.array_equal(channel, flair))
    if not missing and np.array_equal(pre, post):
        return ("pre-contrast=post-contrast",)
    return missing


def volume_names(name: str) -> tuple[str, str]:
    """File names of a patient's image and label volume."""
    return f"{name}{IMAGE_SUFFIX}", f"{name}{LABEL_SUFFIX}"
