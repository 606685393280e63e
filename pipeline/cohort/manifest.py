"""Read, check and write a manifest, and select its volumes by section."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pipeline.cohort.listing import Listing, stamp
from pipeline.cohort.names import id_fault
from pipeline.errors import PipelineError
from pipeline.files import replace_all
from pipeline.imaging.formats import case_of, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.files import checksum_path, sha256_bytes, write_durably, write_with_checksum, writing_errors
from pipeline.scripts.manifest import (
    MANIFEST_NAME,
    SECTIONS,
    VOLUMES,
    person,
    read_manifest_json,
    refuse_changed_volume,
)

logger = logging.getLogger(__name__)

_STATE_NAME = ".state.json"
STAGING = ".building"
"""Folder in which volumes are written until all are finished."""
_TESTING = "testing"
"""Section of images without labels in datalists of MONAI's Auto3DSeg."""
_REBUILD = "Build it again with lgg-flair manifest."


@dataclass(frozen=True)
class PatientRecord:
    """What the manifest records about one patient, in the order of the file.

    Args:
        shape: Shape of the volumes, (H, W, D).
        lesion_voxels: Number of lesion voxels in the label.
        missing_sequences: Sequences that repeat FLAIR, or ``a=b`` for two other sequences that are equal.
        mask_values: Values that the masks held before they became 0 and 1.
        warnings: What is unusual about the patient, each as ``kind: message``.
        sources: SHA-256 of each source file, by path in the source folder.
        image_sha256: SHA-256 of the image volume; empty if it was not written.
        label_sha256: SHA-256 of the label volume; empty if it was not written.
    """

    shape: tuple[int, ...]
    lesion_voxels: int
    missing_sequences: tuple[str, ...] = ()
    mask_values: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    image_sha256: str = ""
    label_sha256: str = ""


@dataclass(frozen=True)
class Volume:
    """One patient of a manifest, with the paths of the image and the label.

    Args:
        patient: The patient's id.
        image: Path of the image, a NIfTI file.
        label: Path of the label, a NIfTI file on the same grid as the image.
        section: The patient's section: ``training``, ``validation`` or ``test``.
        fold: Number of the patient's fold, from 0; None without folds.
        lesion_voxels: Number of lesion voxels; None if another program wrote the datalist.
        image_sha256: SHA-256 of the image when the manifest was built; empty if another program wrote the datalist.
        label_sha256: SHA-256 of the label when the manifest was built; empty if another program wrote the datalist.
    """

    patient: str
    image: Path
    label: Path
    section: str
    fold: int | None
    lesion_voxels: int | None
    image_sha256: str
    label_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and checked.

    Args:
        path: The file ``manifest.json``, or another datalist.
        sha256: SHA-256 of the file.
        sections: The volumes of each section, ``training``, ``validation`` and ``test``.
        patients: What the manifest records about each patient, by id; empty if another program wrote the datalist.
        raw: The content of the file.
    """

    path: Path
    sha256: str
    sections: dict[str, tuple[Volume, ...]]
    patients: dict[str, dict[str, Any]] = field(repr=False)
    raw: dict[str, Any] = field(repr=False)

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """The volumes of all sections together."""
        return tuple(volume for section in self.sections.values() for volume in section)

    @property
    def folds(self) -> list[int]:
        """The numbers of the folds, sorted; empty without folds."""
        return sorted({volume.fold for volume in self.volumes if volume.fold is not None})


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest. No volume is opened.

    Decathlon datalists of other programs can be read too. Their paths may be absolute. Patients are named after the
    image files, and items without a label are left out with a warning.

    Args:
        path: ``manifest.json``, the folder that holds it, or another datalist.

    Returns:
        The manifest, with its volumes by section.

    Raises:
        PipelineError: The file is missing, is not JSON or not a datalist, or has a patient twice or a person in two
            sections. A manifest of ``lgg-flair manifest`` must also be complete, with all paths in its folder.

    Examples:
        >>> import pipeline
        >>> manifest = pipeline.read_manifest("data_manifest")
        >>> list(manifest.sections)
        ['training', 'validation', 'test']
        >>> manifest.sections["validation"][0].label.name
        '..._label.nii.gz'
    """
    file = Path(path) / MANIFEST_NAME if Path(path).is_dir() else Path(path)
    raw, sha256 = read_manifest_json(file)
    if is_of_others(raw):
        sections = {section: _listed(file, section, raw) for section in SECTIONS}
        manifest = Manifest(file, sha256, sections, {}, raw)
        _refuse_twice(manifest, "Put each patient into one section. The id is the image's name, or a key 'patient'.")
        return manifest
    counts = raw.get("counts")
    if not (
        isinstance(counts, dict)
        and all(type(counts.get(key)) is int for key in ("found", "used", "skipped", "refused"))
        and isinstance(raw.get("patients"), dict)
    ):
        raise PipelineError(
            f"{file}: not a manifest (expected 'patients' and 'counts', or the lists of a Decathlon datalist). "
            f"{_REBUILD}"
        )
    sections = {}
    for section in SECTIONS:
        items = raw.get(section)
        if not isinstance(items, list):
            raise PipelineError(f"{file}: no list {section!r}. {_REBUILD}")
        sections[section] = tuple(_volume(file, section, item, raw["patients"]) for item in items)
    manifest = Manifest(file, sha256, sections, raw["patients"], raw)
    _refuse_twice(manifest, _REBUILD)
    return manifest


def read_images(path: Path) -> list[tuple[str, Path]]:
    """Patient and image path of every item of a manifest or another Decathlon datalist. Labels are not needed.

    Args:
        path: ``manifest.json``, the folder that holds it, or another datalist.

    Raises:
        PipelineError: The file cannot be read, or an image has changed since the manifest was built.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    raw, _ = read_manifest_json(file)
    if is_of_others(raw):
        items = (item for section in (*SECTIONS, _TESTING) for item in _items(file, section, raw))
        return [(patient, file.parent / item["image"]) for patient, item in items]
    volumes = read_manifest(file).volumes
    for volume in volumes:
        refuse_changed_volume(volume.image, volume.image_sha256)
    return [(volume.patient, volume.image) for volume in volumes]


def is_of_others(raw: Mapping[str, Any]) -> bool:
    """Whether a datalist was written by hand or by another program."""
    return not {"patients", "counts"} & raw.keys() and any(
        isinstance(raw.get(section), list) for section in (*SECTIONS, _TESTING)
    )


def _items(file: Path, section: str, raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Patient, and image, label and fold, of each item in a section of a datalist. Label and fold may be missing."""
    items = raw.get(section, [])
    if not isinstance(items, list):
        raise PipelineError(f"{file}: {section!r} is not a list (expected a list of images). Correct the file.")
    found = []
    for item in items:
        parts = {"label": None, "fold": None, **(item if isinstance(item, dict) else {"image": item})}
        image, label, fold = parts.get("image"), parts["label"], parts["fold"]
        fits = isinstance(label, (str, type(None))) and type(fold) in (int, type(None))
        if not isinstance(image, str) or not fits:
            raise PipelineError(
                f"{file}: {shown(item)[:100]} in {section!r} (expected image and label, each a path). Correct the file."
            )
        patient = str(parts.get("patient") or case_of(stem_of(PurePath(image).name)))
        if fault := id_fault(patient):
            raise PipelineError(
                f"{file}: the patient id {shown(patient)!r} {fault}. Rename {shown(image)}, or add a key 'patient'."
            )
        found.append((patient, parts))
    return found


def _listed(file: Path, section: str, raw: Mapping[str, Any]) -> tuple[Volume, ...]:
    """The volumes with a label in a section of another program's datalist."""
    items = _items(file, section, raw)
    volumes = tuple(
        Volume(patient, file.parent / item["image"], file.parent / item["label"], section, item["fold"], None, "", "")
        for patient, item in items
        if item["label"] is not None
    )
    if len(volumes) < len(items):
        logger.warning("%s: %d items of %r without label are left out", file, len(items) - len(volumes), section)
    return volumes


def _refuse_twice(manifest: Manifest, remedy: str) -> None:
    """Refuse a patient who is listed twice and a person who is in two sections."""
    patients: set[str] = set()
    persons: dict[str, Volume] = {}
    for volume in manifest.volumes:
        first = persons.setdefault(person(volume.patient), volume)
        if volume.patient.casefold() in patients:  # their files would overwrite each other on some systems
            raise PipelineError(f"{manifest.path}: patient {shown(volume.patient)} is listed twice. {remedy}")
        if first.section != volume.section:
            raise PipelineError(
                f"{manifest.path}: one person in two sections: {shown(first.patient)} in {first.section}, "
                f"{shown(volume.patient)} in {volume.section} (expected one section a person). {remedy}"
            )
        patients.add(volume.patient.casefold())


def _volume(file: Path, section: str, item: Any, patients: dict[str, Any]) -> Volume:
    """One item of a section, joined with what the manifest records about its patient."""
    info = patients.get(str(item.get("patient"))) if isinstance(item, dict) else None
    found = {"fold": None, **info, **item} if isinstance(info, dict) else {}
    kinds = {"patient": str, "image": str, "label": str, "lesion_voxels": int, "image_sha256": str, "label_sha256": str}
    complete = all(type(found.get(key)) is kind for key, kind in kinds.items())
    if not complete or type(found["fold"]) not in (int, type(None)):
        raise PipelineError(
            f"{file}: {shown(item)[:100]} in {section!r} lacks image, label or patient, or has no complete entry under "
            f"'patients'. {_REBUILD}"
        )
    fault = id_fault(found["patient"])
    if fault:
        raise PipelineError(f"{file}: the patient id {shown(found['patient'])!r} {fault}. {_REBUILD}")
    for part in ("image", "label"):
        path = PurePosixPath(found[part])
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in found[part] or ":" in path.parts[0]:
            raise PipelineError(
                f"{file}: path {shown(found[part])!r} leaves the folder of the manifest (expected one below it). "
                f"{_REBUILD}"
            )
        found[part] = file.parent / path
    return Volume(section=section, fold=found["fold"], **{key: found[key] for key in kinds})


def select(manifest: Manifest, split: str) -> tuple[Volume, ...]:
    """The volumes of one section, or of all.

    Args:
        manifest: The manifest to select from.
        split: ``training``, ``validation``, ``test`` or ``all``.

    Returns:
        At least one volume.

    Raises:
        PipelineError: There is no such section, or it is empty.
    """
    if split not in (*SECTIONS, "all"):
        raise PipelineError(f"split {split!r} (expected {', '.join(SECTIONS)} or all).")
    volumes = manifest.volumes if split == "all" else manifest.sections[split]
    if not volumes:
        sizes = ", ".join(f"{section} {len(manifest.sections[section])}" for section in SECTIONS)
        filled = [f"pass --split {section}, or" for section in SECTIONS if manifest.sections[section]]
        advice = f"{' '.join(filled[:1])} build the manifest with another --split.".strip()
        raise PipelineError(
            f"{manifest.path}: no patient in {split!r} (found: {sizes}). {advice[0].upper()}{advice[1:]}"
        )
    return volumes


def verify_volume(volume: Volume) -> None:
    """Check that image and label still have the SHA-256 that the manifest records, if it records one.

    Raises:
        PipelineError: A file has changed or cannot be read.
    """
    for path, sha256 in ((volume.image, volume.image_sha256), (volume.label, volume.label_sha256)):
        if sha256:
            refuse_changed_volume(path, sha256)


def unchanged(folder: Path, options: Mapping[str, Any], listing: Listing) -> bool:
    """Whether the options, all source files and all outputs are the same as after the last run.

    Only sizes and modification times are compared. ``--verify`` compares the content.
    """
    try:
        known = json.loads((folder / _STATE_NAME).read_bytes())
        return bool(known == json.loads(_state(options, listing, {name: folder / name for name in known["outputs"]})))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # without a usable record, the content is compared


def _state(options: Mapping[str, Any], listing: Listing, outputs: Mapping[str, Path]) -> bytes:
    """What ``unchanged`` compares. It names no source file. ``outputs`` maps paths in the folder to files."""
    state = {
        "options": dict(options),
        "listing_sha256": sha256_bytes(json.dumps([listing.stamps, listing.faults], sort_keys=True).encode()),
        "outputs": {name: stamp(path) for name, path in outputs.items()},
    }
    return json.dumps(state).encode()


def write_manifest(
    out: Path,
    content: Mapping[str, Any],
    staged: Mapping[str, Path],
    options: Mapping[str, Any],
    listing: Listing,
    *,
    staging: Path,
    earlier: Manifest | None = None,
) -> None:
    """Put volumes and ``manifest.json`` in place, all or none, and remove volumes that are no longer named.

    Args:
        out: The folder of the manifest.
        content: The content of ``manifest.json``.
        staged: The finished file of each volume, by its path in ``out``.
        options: The options that decide the content, for ``unchanged``.
        listing: All files of the source folder.
        staging: The folder with the finished files, on the same disk as ``out``.
        earlier: The manifest that is replaced; None without one.

    Raises:
        PipelineError: A file cannot be written.
    """
    manifest, proof = out / MANIFEST_NAME, checksum_path(out / MANIFEST_NAME)
    data = (json.dumps(content, indent=1) + "\n").encode()
    # All of the new manifest is on the disk before any file of an earlier one is touched.
    with writing_errors(out):
        known = proof.read_bytes() if manifest.is_file() and proof.is_file() else b""
        write_with_checksum(staging / MANIFEST_NAME, data)
        state = _state(options, listing, {**staged, MANIFEST_NAME: staging / MANIFEST_NAME})
        write_durably(staging / _STATE_NAME, state)
        write_durably(staging / "both", sha256_bytes(data).encode() + b"\n" + known)
        (out / _STATE_NAME).unlink(missing_ok=True)
    # While the files are exchanged, the hashes of both manifests are valid.
    moves = {staging / "both": proof} if known else {}
    moves |= {source: out / name for name, source in sorted(staged.items())}
    moves |= {staging / MANIFEST_NAME: manifest}
    moves |= {checksum_path(staging / MANIFEST_NAME): proof, staging / _STATE_NAME: out / _STATE_NAME}
    replace_all(moves, staging / "before")
    if earlier:
        with writing_errors(out):
            # By number, because on a disk that ignores upper and lower case, an old name can be that of a new file.
            kept = {(out / name).stat().st_ino for name in staged}
            old = {path for volume in earlier.volumes for path in (volume.image, volume.label)}
            for path in sorted(old):
                if path.exists() and path.parent.samefile(out / VOLUMES) and path.stat().st_ino not in kept:
                    path.unlink()
