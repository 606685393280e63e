"""A manifest or another Decathlon datalist: its items by section or fold, held against the hashes it was built with."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .faults import PipelineError, shown
from .files import content_of, matches_checksum, sha256_bytes, sha256_file

MANIFEST_NAME = "manifest.json"
CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""Channel order of a slice and of a volume (Buda et al., Computers in Biology and Medicine 109, 2019)."""
FLAIR = CHANNELS.index("FLAIR")
SECTIONS = ("training", "validation", "test")
"""Sections of a Decathlon datalist, each a key of ``manifest.json``."""
VOLUMES = "volumes"
"""Folder of image and label volumes, beside a manifest or in an evaluation."""
MAX_MANIFEST_BYTES = 32 * 2**20
"""Thousands of patients. JSON can ask for fifty times its size in memory."""
IMAGE_SUFFIX, LABEL_SUFFIX, MASK_SUFFIX = "_image.nii.gz", "_label.nii.gz", "_mask.nii.gz"
PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX = "_probability.nii.gz", "_uncertainty.nii.gz"
"""Ends of the names of a patient's volumes."""

Item = dict[str, Any]
"""One patient: "image" and "label" are absolute paths; "patient" and "fold" where they are known."""


def read_manifest_json(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a manifest, and its SHA-256.

    Args:
        path: ``manifest.json``, or another file of the same form.

    Raises:
        PipelineError: The file is missing, is no JSON object, or has changed since it was built.
    """
    try:
        data = content_of(path, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise PipelineError(
            f"{path}: no manifest ({error.strerror}). Build it with python -m pipeline.manifest, or name the folder "
            f"that holds {MANIFEST_NAME}."
        ) from error
    try:
        content = json.loads(data)
    except ValueError as error:
        raise PipelineError(
            f"{path}: no JSON ({shown(error)}). Build it again with python -m pipeline.manifest."
        ) from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: no JSON object. Build it again with python -m pipeline.manifest.")
    sha256 = sha256_bytes(data)
    if not matches_checksum(path, sha256):
        raise PipelineError(
            f"{path}: changed since it was built, its SHA-256 {sha256} is not that in {path.name}.sha256. Restore it "
            "or build it again with python -m pipeline.manifest --rebuild; if you changed it yourself, remove "
            f"{path.name}.sha256."
        )
    return content, sha256


def section_items(dataset_dir: str, section: str) -> list[Item]:
    """The items of one section.

    Args:
        dataset_dir: The folder that holds ``manifest.json``.
        section: ``training``, ``validation`` or ``test``.

    Raises:
        PipelineError: There is no readable manifest, or the section is empty.
    """
    items = _items(Path(dataset_dir, MANIFEST_NAME), section)
    if not items:
        raise PipelineError(
            f"{Path(dataset_dir, MANIFEST_NAME)}: no patients in section {section}. Choose another --split, or build "
            "the manifest with another split."
        )
    return items


def training_items(dataset_dir: str, fold: int | None = None, rank: int = 0, world_size: int = 1) -> list[Item]:
    """The training patients of one process.

    Args:
        dataset_dir: The folder that holds ``manifest.json``.
        fold: This fold is left out, and all other patients of the sections training and validation are taken; without
            a fold, the section training.
        rank: The number of this process, from 0.
        world_size: The number of processes that train together; each takes its share.

    Raises:
        PipelineError: There is no readable manifest, or it has no such fold.
    """
    path = Path(dataset_dir, MANIFEST_NAME)
    items = _items(path, "training") if fold is None else [i for i in _folded(path, fold) if i.get("fold") != fold]
    return items[rank::world_size]


def validation_items(dataset_dir: str, fold: int | None = None, rank: int = 0, world_size: int = 1) -> list[Item]:
    """The validation patients of one process: those of a fold or, without one, the section validation.

    Args and errors are those of ``training_items``.
    """
    path = Path(dataset_dir, MANIFEST_NAME)
    items = _items(path, "validation") if fold is None else [i for i in _folded(path, fold) if i.get("fold") == fold]
    return items[rank::world_size]


def _folded(path: Path, fold: int) -> list[Item]:
    """All patients of training and validation, of a manifest that has the fold."""
    items = _items(path, "training") + _items(path, "validation")
    if fold not in {item.get("fold") for item in items}:
        raise PipelineError(f"{path}: has no fold {fold}. Build it with --folds K, and pass --fold 0 to K - 1.")
    return items


def _items(path: Path, section: str) -> list[Item]:
    from monai.data import load_decathlon_datalist  # brings torch

    content, _ = read_manifest_json(path)
    if not isinstance(content.get(section), list):
        raise PipelineError(f"{path}: no list {section!r}. Build it again with python -m pipeline.manifest.")
    if not content[section]:
        return []
    items: list[Item] = load_decathlon_datalist(str(path), True, section)
    return items


def image_items(dataset_dir: str) -> list[Item]:
    """Every ``*_image.nii.gz`` below a folder, sorted by path.

    Args:
        dataset_dir: The folder.

    Returns:
        The items; empty where there is no such volume.

    Raises:
        PipelineError: Two volumes have one name.
    """
    # glob passes over hidden folders, Path.rglob does not.
    paths = sorted(glob.glob(f"{glob.escape(str(dataset_dir))}/**/*{IMAGE_SUFFIX}", recursive=True))  # noqa: PTH207
    for name, count in Counter(Path(path).name for path in paths).items():
        if count > 1:
            raise PipelineError(
                f"{dataset_dir}: holds {count} volumes of the name {name}, whose masks would overwrite each other. "
                "Rename one."
            )
    return [{"image": path} for path in paths]


def refuse_changed_volume(path: Path, sha256: str) -> None:
    """Refuse a volume that is not the one a manifest was built with.

    Args:
        path: The volume.
        sha256: Its hash, as the manifest names it.

    Raises:
        PipelineError: The file is missing, or has another content.
    """
    try:
        found = sha256_file(path)
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be read ({error.strerror}). Restore it, or build the manifest again."
        ) from error
    if found != sha256:
        raise PipelineError(
            f"{path}: changed since the manifest was built (SHA-256 {found}, expected {sha256}). Restore it, or build "
            "the manifest again with python -m pipeline.manifest --rebuild."
        )


def refuse_changed_volumes(dataset_dir: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a manifest or volumes that are not what was built; volumes of which no hash is known are passed over.

    Args:
        dataset_dir: The folder that holds ``manifest.json``; without one nothing is checked.
        items: The items that will be used.

    Raises:
        PipelineError: The manifest or a volume has changed.
    """
    path = Path(dataset_dir, MANIFEST_NAME)
    if not path.is_file():
        return
    patients = read_manifest_json(path)[0].get("patients")
    if not isinstance(patients, dict):
        return
    for item in items:
        if "patient" in item and item["patient"] not in patients:
            raise PipelineError(f"{path}: knows nothing of the patient of {item['image']}. Build it again.")
        known = patients.get(item.get("patient"), {})
        for kind in ("image", "label"):
            if isinstance(known, dict) and known.get(f"{kind}_sha256"):
                refuse_changed_volume(Path(item[kind]), known[f"{kind}_sha256"])
