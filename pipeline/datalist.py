"""Read the manifest back: its volumes by section, and the check that they are still the ones it was built with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import PipelineError
from pipeline.records import SECTIONS
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import MANIFEST_NAME, read_manifest_json, refuse_changed_volume
from pipeline.slices import id_fault, person

COUNTS = ("found", "used", "skipped", "refused")
_REBUILD = "Build it again with python -m pipeline.manifest."


@dataclass(frozen=True)
class Volume:
    """One patient of a manifest.

    Args:
        patient: patient id.
        image: the image volume, (H, W, D, 3) uint8.
        label: the label volume, (H, W, D) uint8.
        section: training, validation or test.
        fold: from 0, None without folds.
        lesion_voxels: voxels of the label that are not 0.
        image_sha256: SHA-256 of the image volume when the manifest was built.
        label_sha256: likewise of the label.
    """

    patient: str
    image: Path
    label: Path
    section: str
    fold: int | None
    lesion_voxels: int
    image_sha256: str
    label_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that has been checked.

    Args:
        path: the file.
        sha256: of the file.
        sections: section -> its volumes, in the order of the file.
        patients: patient id -> what the manifest tells of it.
        raw: the whole content.
    """

    path: Path
    sha256: str
    sections: dict[str, tuple[Volume, ...]]
    patients: dict[str, dict[str, Any]] = field(repr=False)
    raw: dict[str, Any] = field(repr=False)

    @property
    def folds(self) -> list[int]:
        """Numbers of its folds, sorted; empty without folds."""
        numbers = {volume.fold for section in self.sections.values() for volume in section}
        return sorted(fold for fold in numbers if fold is not None)


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest; no volume is opened.

    Args:
        path: ``manifest.json`` or the folder that holds it.

    Raises:
        PipelineError: missing, no JSON, not written by ``pipeline.manifest``, a path that leaves the manifest's
            folder, or a person in two sections.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    raw, sha256 = read_manifest_json(file)
    counts = raw.get("counts")
    if not (
        isinstance(counts, dict)
        and all(type(counts.get(key)) is int for key in COUNTS)
        and isinstance(raw.get("patients"), dict)
    ):
        raise PipelineError(
            f"{file}: no 'patients' or no 'counts' (expected a manifest of pipeline.manifest). {_REBUILD}"
        )
    sections: dict[str, tuple[Volume, ...]] = {}
    exams: dict[str, dict[str, str]] = {}
    for section in SECTIONS:
        items = raw.get(section)
        if not isinstance(items, list):
            raise PipelineError(f"{file}: no list {section!r}. {_REBUILD}")
        sections[section] = tuple(_volume(file, section, item, raw["patients"]) for item in items)
        for volume in sections[section]:
            _enter_person(file, volume, exams)
    return Manifest(file, sha256, sections, raw["patients"], raw)


def _enter_person(file: Path, volume: Volume, exams: dict[str, dict[str, str]]) -> None:
    """Refuse a patient who stands twice and a person who stands in two sections."""
    known = exams.setdefault(person(volume.patient), {})
    if volume.patient in known:
        raise PipelineError(
            f"{file}: patient {shown(volume.patient)} stands twice, in {known[volume.patient]} and in "
            f"{volume.section} (expected once). {_REBUILD}"
        )
    for patient, section in known.items():
        if section != volume.section:
            raise PipelineError(
                f"{file}: one person in two sections: {shown(patient)} in {section}, {shown(volume.patient)} in "
                f"{volume.section} (expected one section a person). {_REBUILD}"
            )
    known[volume.patient] = volume.section


def _volume(file: Path, section: str, item: Any, patients: dict[str, Any]) -> Volume:
    """One item of a section, joined with what the manifest tells of its patient.

    Raises:
        PipelineError: a key is missing or has the wrong type.
    """
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("image", "label", "patient")):
        raise PipelineError(f"{file}: an item of {section!r} lacks image, label or patient. {_REBUILD}")
    fault = id_fault(item["patient"])
    if fault:
        raise PipelineError(f"{file}: the patient id {shown(item['patient'])!r} {fault}. {_REBUILD}")
    info = patients.get(item["patient"])
    wanted = {"lesion_voxels": int, "image_sha256": str, "label_sha256": str}
    fold = item.get("fold")
    if (
        not isinstance(info, dict)
        or not all(type(info.get(key)) is kind for key, kind in wanted.items())
        or type(fold) not in (int, type(None))
    ):
        raise PipelineError(
            f"{file}: patient {shown(item['patient'])} has no complete entry under 'patients'. {_REBUILD}"
        )
    return Volume(
        patient=item["patient"],
        image=_inside(file, item["image"]),
        label=_inside(file, item["label"]),
        section=section,
        fold=fold,
        **{key: info[key] for key in wanted},
    )


def _inside(file: Path, relative: str) -> Path:
    """A path of the manifest below its folder.

    Raises:
        PipelineError: absolute, or with ``..``: such a manifest could point anywhere.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in relative or ":" in path.parts[0]:
        raise PipelineError(
            f"{file}: path {shown(relative)!r} leaves the folder of the manifest (expected one below it). {_REBUILD}"
        )
    return file.parent / path


def select(manifest: Manifest, split: str) -> tuple[Volume, ...]:
    """The volumes of a section.

    Args:
        manifest: from ``read_manifest``.
        split: training, validation, test, or all.

    Raises:
        PipelineError: an unknown section, or an empty one.
    """
    if split not in (*SECTIONS, "all"):
        raise PipelineError(f"split {split!r} (expected {', '.join(SECTIONS)} or all).")
    chosen = SECTIONS if split == "all" else (split,)
    volumes = tuple(volume for section in chosen for volume in manifest.sections[section])
    if not volumes:
        sizes = ", ".join(f"{section} {len(manifest.sections[section])}" for section in SECTIONS)
        raise PipelineError(
            f"{manifest.path}: no patient in {split!r} (found: {sizes}). "
            "Choose another split, or build the manifest with another --split."
        )
    return volumes


def verify_volume(volume: Volume) -> None:
    """Recompute both hashes.

    Args:
        volume: of a manifest.

    Raises:
        PipelineError: a file is missing or not the one the manifest was built with.
    """
    refuse_changed_volume(volume.image, volume.image_sha256)
    refuse_changed_volume(volume.label, volume.label_sha256)
