"""The manifest: read and checked, its volumes by section, and written with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pipeline.cohort.listing import Listing, stamp
from pipeline.cohort.names import id_fault, person
from pipeline.errors import PipelineError
from pipeline.files import replace_all
from pipeline.imaging.formats import case_of, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.files import checksum_path, sha256_bytes, write_durably, write_with_checksum, writing_errors
from pipeline.scripts.manifest import MANIFEST_NAME, SECTIONS, read_manifest_json, refuse_changed_volume

logger = logging.getLogger(__name__)

_STATE_NAME = ".state.json"
STAGING = ".building"
"""Folder in which volumes wait until all are finished."""
_TESTING = "testing"
"""Section of images without label, in MONAI's Auto3DSeg."""
_REBUILD = "Build it again with python -m pipeline.manifest."


@dataclass(frozen=True)
class PatientRecord:
    """What the manifest tells of one patient, in the order of the file.

    ``shape`` is (H, W, D). ``missing_sequences`` repeat FLAIR, or are a pair ``a=b`` of two others. ``warnings`` are
    ``kind: message``, ``sources`` path below the source folder -> SHA-256. A volume that was not written has no hash.
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
    """One patient of a manifest: image and label volume, NIfTI files of one grid; the hashes are of when it was built.

    Of a datalist that ``pipeline.manifest`` did not build neither hashes (empty) nor ``lesion_voxels`` are known.
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
    """A checked manifest: ``patients`` tells of each patient by id, ``raw`` is its content, ``sha256`` its file's."""

    path: Path
    sha256: str
    sections: dict[str, tuple[Volume, ...]]
    patients: dict[str, dict[str, Any]] = field(repr=False)
    raw: dict[str, Any] = field(repr=False)

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """The volumes of all sections."""
        return tuple(volume for section in self.sections.values() for volume in section)

    @property
    def folds(self) -> list[int]:
        """Numbers of its folds, sorted; empty without folds."""
        return sorted({volume.fold for volume in self.volumes if volume.fold is not None})


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest; no volume is opened.

    A Decathlon datalist that ``pipeline.manifest`` did not build will do. Its paths may be absolute, its patients are
    named by the image files, and items without label are left out with a warning.

    Args:
        path: ``manifest.json``, the folder that holds it, or another datalist.

    Raises:
        PipelineError: The file is missing, no JSON or no datalist, has a person in two sections or a patient twice; or
            one that ``pipeline.manifest`` built is not complete, or holds a path that leaves its folder.

    Example:
        >>> manifest = read_manifest("data_manifest")
        >>> [volume.patient for volume in manifest.sections["test"]]
        []
    """
    file = Path(path) / MANIFEST_NAME if Path(path).is_dir() else Path(path)
    raw, sha256 = read_manifest_json(file)
    if _is_of_others(raw):
        sections = {section: _listed(file, section, raw) for section in SECTIONS}
        manifest = Manifest(file, sha256, sections, {}, raw)
        _refuse_twice(manifest, "Give each patient one section and an id, by the image's name or a key 'patient'.")
        return manifest
    counts = raw.get("counts")
    if not (
        isinstance(counts, dict)
        and all(type(counts.get(key)) is int for key in ("found", "used", "skipped", "refused"))
        and isinstance(raw.get("patients"), dict)
    ):
        raise PipelineError(
            f"{file}: no manifest (expected 'patients' and 'counts', or the lists of a Decathlon datalist). {_REBUILD}"
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
    """Patient and image of every item of a manifest or another Decathlon datalist; it needs no labels.

    Raises:
        PipelineError: The file cannot be read, or an image is not the one of which the manifest was built.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    raw, _ = read_manifest_json(file)
    if _is_of_others(raw):
        items = (item for section in (*SECTIONS, _TESTING) for item in _items(file, section, raw))
        return [(patient, file.parent / item["image"]) for patient, item in items]
    volumes = read_manifest(file).volumes
    for volume in volumes:
        refuse_changed_volume(volume.image, volume.image_sha256)
    return [(volume.patient, volume.image) for volume in volumes]


def _is_of_others(raw: Mapping[str, Any]) -> bool:
    """Whether a datalist was written by hand or by another program."""
    return not {"patients", "counts"} & raw.keys() and any(
        isinstance(raw.get(section), list) for section in (*SECTIONS, _TESTING)
    )


def _items(file: Path, section: str, raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Patient, and image, label and fold, of each item of a section of such a datalist; an image may stand alone."""
    items = raw.get(section, [])
    if not isinstance(items, list):
        raise PipelineError(f"{file}: {section!r} is no list (expected one of images). Mend the file.")
    found = []
    for item in items:
        parts = {"label": None, "fold": None, **(item if isinstance(item, dict) else {"image": item})}
        image, label, fold = parts.get("image"), parts["label"], parts["fold"]
        fits = isinstance(label, (str, type(None))) and type(fold) in (int, type(None))
        if not isinstance(image, str) or not fits:
            raise PipelineError(
                f"{file}: {shown(item)[:100]} in {section!r} (expected image and label, each a path). Mend the file."
            )
        patient = str(parts.get("patient") or case_of(stem_of(PurePath(image).name)))
        if fault := id_fault(patient):
            raise PipelineError(
                f"{file}: the patient id {shown(patient)!r} {fault}. Rename {shown(image)}, or add a key 'patient'."
            )
        found.append((patient, parts))
    return found


def _listed(file: Path, section: str, raw: Mapping[str, Any]) -> tuple[Volume, ...]:
    """The volumes of a section of such a datalist that have a label."""
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
    """Refuse a patient who stands twice and a person who stands in two sections."""
    patients: set[str] = set()
    persons: dict[str, Volume] = {}
    for volume in manifest.volumes:
        first = persons.setdefault(person(volume.patient), volume)
        if volume.patient in patients:
            raise PipelineError(f"{manifest.path}: patient {shown(volume.patient)} stands twice. {remedy}")
        if first.section != volume.section:
            raise PipelineError(
                f"{manifest.path}: one person in two sections: {shown(first.patient)} in {first.section}, "
                f"{shown(volume.patient)} in {volume.section} (expected one section a person). {remedy}"
            )
        patients.add(volume.patient)


def _volume(file: Path, section: str, item: Any, patients: dict[str, Any]) -> Volume:
    """One item of a section, joined with what the manifest tells of its patient."""
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
    """The volumes of a section, or of ``all``; at least one."""
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
    """Recompute both hashes; of a volume without known hash nothing is checked."""
    for path, sha256 in ((volume.image, volume.image_sha256), (volume.label, volume.label_sha256)):
        if sha256:
            refuse_changed_volume(path, sha256)


def unchanged(folder: Path, options: Mapping[str, Any], listing: Listing) -> bool:
    """True where options, every file of the source and every output are as the last run left them.

    Sizes and modification times are compared, no content: ``--verify`` does that.
    """
    try:
        known = json.loads((folder / _STATE_NAME).read_bytes())
        return bool(known == json.loads(_state(options, listing, {name: folder / name for name in known["outputs"]})))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # no usable state: check by content


def _state(options: Mapping[str, Any], listing: Listing, outputs: Mapping[str, Path]) -> bytes:
    """What ``unchanged`` compares; it names no file of the source. ``outputs`` is path in the folder -> file."""
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
    """Put volumes and then ``manifest.json`` in place, all or none; then drop volumes that it no longer names.

    ``staged`` maps the path of each volume below ``out`` to its finished file. ``staging`` is on the same disk.
    """
    manifest, proof = out / MANIFEST_NAME, checksum_path(out / MANIFEST_NAME)
    data = (json.dumps(content, indent=1) + "\n").encode()
    # Before anything of an earlier manifest is touched, the disk has taken all of this one.
    with writing_errors(out):
        known = proof.read_bytes() if manifest.is_file() and proof.is_file() else b""
        write_with_checksum(staging / MANIFEST_NAME, data)
        state = _state(options, listing, {**staged, MANIFEST_NAME: staging / MANIFEST_NAME})
        write_durably(staging / _STATE_NAME, state)
        write_durably(staging / "both", sha256_bytes(data).encode() + b"\n" + known)
        (out / _STATE_NAME).unlink(missing_ok=True)
    # For the moment of the change the hashes of both manifests hold.
    moves = {staging / "both": proof} if known else {}
    moves |= {source: out / name for name, source in sorted(staged.items())}
    moves |= {staging / MANIFEST_NAME: manifest}
    moves |= {checksum_path(staging / MANIFEST_NAME): proof, staging / _STATE_NAME: out / _STATE_NAME}
    replace_all(moves, staging / "before")
    if earlier:
        old = {path for volume in earlier.volumes for path in (volume.image, volume.label)}
        with writing_errors(out):
            for path in sorted(old - {out / name for name in staged}):
                path.unlink(missing_ok=True)
