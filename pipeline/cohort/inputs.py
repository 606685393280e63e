"""What is given to be predicted -> image volumes by name: NIfTI files, folders of them or of slices, manifests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cohort.listing import list_files
from pipeline.cohort.manifest import read_manifest, verify_volume
from pipeline.cohort.names import id_fault, is_junk_folder
from pipeline.cohort.reading import slices_by_patient
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import IMAGE_SUFFIX, MANIFEST_NAME, VOLUMES

BUILT_MARK = ".built_from_slices"
"""Stands beside ``volumes/`` from before the first volume is built: what lies in it is no input."""
NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Inputs:
    """Name -> image volume, which of ``slice_folders`` is still to be built; ``skipped`` are NIfTI files not taken."""

    volumes: dict[str, Path]
    slice_folders: tuple[Path, ...]
    skipped: tuple[Path, ...]


def find_inputs(paths: Sequence[Path], out: Path) -> Inputs:
    """The volumes that paths stand for."""
    found: list[tuple[str, Path]] = []
    slice_folders, skipped = [], []
    for path in paths:
        if path.name == MANIFEST_NAME or (path / MANIFEST_NAME).is_file():
            volumes = read_manifest(path).volumes
            for volume in volumes:
                verify_volume(volume)
            found += [(volume.patient, volume.image) for volume in volumes]
        elif path.is_dir():
            images, others = _nifti_files(path)
            found += _of_folder(path, images, out)
            skipped += [other for other in others if images and out not in other.parents]
            slice_folders += [] if images else [path]
        elif path.name.endswith(NIFTI_SUFFIXES):
            found.append((path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_image"), path))
        else:
            raise PipelineError(
                f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected .nii.gz, .nii, a folder of "
                "slices or volumes, or a manifest). Check the path."
            )
    if not found:
        raise PipelineError(f"{', '.join(map(str, paths))}: no volume in it. Build the manifest of other slices.")
    for name, path in found:
        fault = id_fault(name)
        if fault:
            raise PipelineError(
                f"{path}: its name without {IMAGE_SUFFIX} {fault} (expected a letter or digit, then letters, digits, "
                "'_', '-', '.' and space). Rename the file."
            )
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        files = ", ".join(str(path) for name, path in found if name == twice[0])
        raise PipelineError(f"two volumes of the name {twice[0]} ({files}). Rename one, or predict them apart.")
    return Inputs(dict(found), tuple(slice_folders), tuple(skipped))


def _of_folder(folder: Path, images: Sequence[Path], out: Path) -> list[tuple[str, Path]]:
    """Volumes of a folder; where it holds none, those that will be built of its slices."""
    slices, faults, _ = slices_by_patient(list_files(folder))
    patients = sorted(name for name, files in slices.items() if any(file.kind == "image" for file in files))
    if images and patients:
        raise PipelineError(
            f"{folder}: holds volumes ({images[0].relative_to(folder)}, {len(images)} in all) and slices (of "
            f"{len(patients)} patients, {patients[0]} the first). Predict them apart: give the folders one by one."
        )
    if not images and not patients:
        if faults:
            raise ManifestError({shown(path): [fault] for path, fault in faults.items()})
        raise PipelineError(
            f"{folder}: neither *{IMAGE_SUFFIX} nor PATIENT_NUMBER.tif below it, and no {MANIFEST_NAME} in it. Name "
            "the volumes one by one, or the folder of the slices or of a manifest."
        )
    if images:
        return [(image.name.removesuffix(IMAGE_SUFFIX), image) for image in images]
    return [(name, out / VOLUMES / f"{name}{IMAGE_SUFFIX}") for name in patients]


def _nifti_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image volumes below a folder, and other NIfTI files; what a prediction has built of slices is passed over."""

    def fail(error: OSError) -> None:
        raise PipelineError(f"{error.filename}: the folder cannot be read ({error.strerror}). Mend its permissions.")

    images: list[Path] = []
    others: list[Path] = []
    for parent, _, files in os.walk(folder, onerror=fail):
        place = Path(parent)
        if place.name == VOLUMES and (place.parent / BUILT_MARK).is_file():
            continue
        hidden = any(is_junk_folder(part) for part in place.relative_to(folder).parts)
        for path in (place / name for name in files if name.endswith(NIFTI_SUFFIXES)):
            taken = path.name.endswith(IMAGE_SUFFIX) and not hidden and not path.name.startswith("._")
            if taken and path.is_symlink():
                target = Path(os.path.realpath(path))
                if not target.is_file() or Path(os.path.realpath(folder)) not in target.parents:
                    raise PipelineError(
                        f"{path}: a symbolic link out of the folder, or to nothing (not followed). Replace it by the "
                        "file itself."
                    )
            (images if taken else others).append(path)
    return sorted(images), sorted(others)
