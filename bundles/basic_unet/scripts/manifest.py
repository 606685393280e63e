"""Reads a manifest or another Decathlon datalist: its patients by section or fold, checked by their hashes."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .faults import PipelineError, shown
from .files import content_of, matches_checksum, sha256_bytes, sha256_file
from .sequences import sequence_of

MANIFEST_NAME = "manifest.json"
CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""Channel order of a slice and of a volume (Buda et al., Computers in Biology and Medicine 109, 2019)."""
FLAIR = CHANNELS.index("FLAIR")
ROLES = ("pre", "flair", "post")
"""Short names of ``CHANNELS``, in the same order."""
DATASET_NAME = "dataset.json"
"""File name of the datalist in Decathlon's and nnU-Net's data sets."""
SECTIONS = ("training", "validation", "test")
"""Sections of a Decathlon datalist, each a key of ``manifest.json``."""
VOLUMES = "volumes"
"""Name of the folder of image and label volumes, beside a manifest or in an evaluation."""
MAX_MANIFEST_BYTES = 32 * 2**20  # thousands of patients; JSON can ask for fifty times its size in memory
IMAGE_SUFFIX, LABEL_SUFFIX, MASK_SUFFIX = "_image.nii.gz", "_label.nii.gz", "_mask.nii.gz"
PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX = "_probability.nii.gz", "_uncertainty.nii.gz"
"""Ends of the names of a patient's volumes."""
_EXAM = re.compile(
    r"(?P<tcga>TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4})(?=[-_.]|\Z)|sub-[A-Za-z0-9]+(?=_ses-)"
    r"|BraTS-[A-Za-z]+-[0-9]{5}(?=-[0-9]{3}\Z)",
    re.IGNORECASE,
)
"""The person in names of exams: ``TCGA_XX_XXXX_DATE``, ``TCGA-XX-XXXX``, ``sub-X_ses-Y``, ``BraTS-GLI-00001-000``."""
_REBUILD = "Build it again with lgg-flair manifest."
_RESTORE = "Restore it, or build the manifest again with lgg-flair manifest --rebuild."

Item = dict[str, Any]
"""A patient: "image" and "label" are absolute paths; "patient" and "fold" are there where they are known."""
Channels = Mapping[int, str]
"""Number of a channel -> its name, such as ``FLAIR``."""


def person(patient: str) -> str:
    """The person that a patient id belongs to.

    The id may name one exam of a person, as in TCGA, BIDS and BraTS. Any other id is returned as it is.

    Args:
        patient: The patient id.

    Examples:
        >>> person("TCGA_HT_7616_19940813"), person("sub-01_ses-2"), person("BraTS-GLI-00001-000")
        ('TCGA_HT_7616', 'sub-01', 'BraTS-GLI-00001')
    """
    match = _EXAM.match(patient)
    if match and match["tcga"]:
        return match["tcga"].replace("-", "_").upper()
    return match[0] if match else patient


def read_manifest_json(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a manifest or another datalist, and its SHA-256.

    Raises:
        PipelineError: The file is missing or not a JSON object, has changed since it was built, or names channels that
            the networks do not read.
    """
    try:
        data = content_of(path, MAX_MANIFEST_BYTES)
        content = {**json.loads(data)}
    except OSError as error:
        raise PipelineError(
            f"{path}: no manifest ({error.strerror}). Build it with lgg-flair manifest, or name the folder "
            f"that holds {MANIFEST_NAME}."
        ) from error
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{path}: no JSON object ({shown(error)}). {_REBUILD}") from error
    sha256 = sha256_bytes(data)
    if not matches_checksum(path, sha256):
        raise PipelineError(
            f"{path}: changed since it was built, its SHA-256 {sha256} is not that in {path.name}.sha256. {_RESTORE} "
            f"If you changed it yourself, remove {path.name}.sha256."
        )
    refuse_other_channels(path, content)
    return content, sha256


def channel_role(name: str) -> str | None:
    """``flair``, ``pre`` or ``post`` for a channel's name; None for another sequence."""
    found = sequence_of(name.replace(" ", ""))
    return dict(zip(CHANNELS, ROLES, strict=True)).get(name) or (found[1] if found else None)


def channels_of(content: Mapping[str, Any]) -> Channels:
    """The channels that a datalist names; empty where it names none.

    Args:
        content: The datalist's content, with ``channel_names`` (nnU-Net) or ``modality`` (Decathlon).

    Raises:
        PipelineError: The channels are not numbers and names, none is FLAIR, or two are the same sequence.
    """
    names = content.get("channel_names", content.get("modality")) or {}
    try:
        channels = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise PipelineError(f"channels {shown(names)[:100]} (expected numbers and names). Correct the file.") from error
    roles = [role for role in map(channel_role, channels.values()) if role]
    if channels and "flair" not in roles:
        raise PipelineError(f"no channel FLAIR (found {shown(', '.join(channels.values()))}). Name it in the file.")
    if len(set(roles)) < len(roles):
        raise PipelineError(
            f"two channels of one sequence ({shown(', '.join(channels.values()))}). Give them different names."
        )
    return channels


def refuse_other_channels(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a datalist whose channels are not those that the networks read.

    Args:
        path: The datalist, for messages.
        content: The datalist's content.

    Raises:
        PipelineError: The datalist names channels, and they are neither FLAIR alone nor ``CHANNELS`` in this order.
    """
    try:
        channels = channels_of(content)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from error
    roles = tuple(channel_role(channels.get(number, "")) for number in range(len(channels)))
    if roles not in ((), ("flair",), ROLES):
        raise PipelineError(
            f"{path}: channels {shown(', '.join(channels.values()))} (expected FLAIR alone, or pre-contrast T1, FLAIR "
            "and post-contrast T1 in this order). Build a manifest with the right order by "
            "lgg-flair manifest FOLDER, or give images of FLAIR alone."
        )


def refuse_described(folder: Path) -> None:
    """Refuse a folder of images whose datalist names other channels than those that the networks read."""
    for path in (folder / MANIFEST_NAME, folder / DATASET_NAME):
        if path.is_file():
            read_manifest_json(path)


def is_pseudonymised(content: Mapping[str, Any]) -> bool:
    """Whether the patients of a manifest with this content have pseudonyms."""
    options = content.get("options")
    return isinstance(options, dict) and bool(options.get("pseudonymised"))


def lists_images(content: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a datalist with this content lists the images of all these items, by their file names."""
    entries = [entry for section in SECTIONS for entry in content.get(section) or ()]
    names = {Path(str(entry.get("image"))).name for entry in entries if isinstance(entry, dict)}
    return bool(content) and all(Path(item["image"]).name in names for item in items)


def section_items(dataset_dir: str, section: str) -> list[Item]:
    """The patients of one section of a manifest.

    Args:
        dataset_dir: The folder of ``manifest.json``.
        section: ``training``, ``validation`` or ``test``.

    Raises:
        PipelineError: The manifest is unreadable or damaged, the section is empty, or an item lacks one image or label.
    """
    items = _items(dataset_dir, section)
    if not items:
        raise PipelineError(
            f"{Path(dataset_dir, MANIFEST_NAME)}: no patients in section {section}. Choose another --split, or build "
            "the manifest with another split."
        )
    return items


def training_items(dataset_dir: str, fold: int | None = None, rank: int = 0, world_size: int = 1) -> list[Item]:
    """The training patients of one process.

    Args:
        dataset_dir: The folder of ``manifest.json``.
        fold: The fold that validates. All other patients of the sections training and validation train. None: the
            section training.
        rank: The process's number, from 0.
        world_size: The number of processes that share the patients.

    Raises:
        PipelineError: The manifest is unreadable or damaged, has no such fold, or lists an item without one image or
            label.
    """
    items = _items(dataset_dir, "training") if fold is None else _folded(dataset_dir, fold, is_inside=False)
    return items[rank::world_size]


def validation_items(dataset_dir: str, fold: int | None = None, rank: int = 0, world_size: int = 1) -> list[Item]:
    """The validation patients of one process.

    Args:
        dataset_dir: The folder of ``manifest.json``.
        fold: The fold that validates. None: the section validation.
        rank: The process's number, from 0.
        world_size: The number of processes that share the patients.

    Raises:
        PipelineError: The manifest is unreadable or damaged, has no such fold, or lists an item without one image or
            label.
    """
    items = _items(dataset_dir, "validation") if fold is None else _folded(dataset_dir, fold, is_inside=True)
    return items[rank::world_size]


def _folded(dataset_dir: str, fold: int, *, is_inside: bool) -> list[Item]:
    """The patients of training and validation inside a fold, or those outside it."""
    items = _items(dataset_dir, "training") + _items(dataset_dir, "validation")
    if fold not in {item.get("fold") for item in items}:
        raise PipelineError(
            f"{Path(dataset_dir, MANIFEST_NAME)}: has no fold {fold}. Build it with --folds K, and pass a --fold from "
            "0 to K - 1."
        )
    return [item for item in items if (item.get("fold") == fold) == is_inside]


def _items(dataset_dir: str, section: str) -> list[Item]:
    from monai.data import load_decathlon_datalist  # imports torch

    path = Path(dataset_dir, MANIFEST_NAME)
    found = read_manifest_json(path)[0].get(section)
    if not isinstance(found, list):
        raise PipelineError(f"{path}: no list {section!r}. {_REBUILD}")
    for item in found:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("image", "label")):
            raise PipelineError(
                f"{path}: {shown(item)[:100]} in {section!r} (expected an image, one file with FLAIR alone or three "
                "channels, and a label, one file). Build a manifest with lgg-flair manifest."
            )
    # MONAI fails on an empty section.
    items: list[Item] = load_decathlon_datalist(str(path), True, section) if found else []
    return items


def image_items(dataset_dir: str) -> list[Item]:
    """Every ``*_image.nii.gz`` below a folder, sorted by path.

    Raises:
        PipelineError: Two volumes have the same file name, or a datalist in the folder names other channels than those
            that the networks read.
    """
    refuse_described(Path(dataset_dir))
    # glob skips hidden folders, Path.rglob does not.
    paths = sorted(glob.glob(f"{glob.escape(str(dataset_dir))}/**/*{IMAGE_SUFFIX}", recursive=True))  # noqa: PTH207
    for name, count in Counter(Path(path).name for path in paths).items():
        if count > 1:
            raise PipelineError(
                f"{dataset_dir}: holds {count} volumes with the name {name}, whose masks would overwrite each other. "
                "Rename one."
            )
    return [{"image": path} for path in paths]


def refuse_changed_volume(path: Path, sha256: str) -> None:
    """Refuse a volume that is missing, or that has another SHA-256 than in the manifest."""
    try:
        found = sha256_file(path)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}). {_RESTORE}") from error
    if found != sha256:
        raise PipelineError(
            f"{path}: changed since the manifest was built (SHA-256 {found}, expected {sha256}). {_RESTORE}"
        )


def refuse_changed_volumes(dataset_dir: str, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Refuse a manifest or volumes that have changed since they were built.

    Args:
        dataset_dir: The folder of ``manifest.json``; nothing is checked where there is none.
        items: The patients to check.

    Returns:
        The items that could not be checked, because no hash of their image is known.

    Raises:
        PipelineError: The manifest or a volume has changed, or the manifest does not name a patient.
    """
    path = Path(dataset_dir, MANIFEST_NAME)
    patients = read_manifest_json(path)[0].get("patients") if path.is_file() else None
    if not isinstance(patients, dict):
        return list(items)
    unknown = []
    for item in items:
        if "patient" in item and item["patient"] not in patients:
            raise PipelineError(f"{path}: does not name the patient of {item['image']}. {_REBUILD}")
        known = patients.get(item.get("patient"), {})
        hashes = {kind: known.get(f"{kind}_sha256") for kind in ("image", "label")} if isinstance(known, dict) else {}
        for kind, sha256 in hashes.items():
            if sha256:
                refuse_changed_volume(Path(item[kind]), sha256)
        if not hashes.get("image"):
            unknown.append(item)
    return unknown
