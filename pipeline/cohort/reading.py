"""Read all files of a folder into one volume per patient, and record what happened to every file."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.cohort.cases import Cases, find_cases
from pipeline.cohort.listing import Listing, counts_line, list_files
from pipeline.cohort.manifest import STAGING, PatientRecord
from pipeline.cohort.names import SliceFile, case_collisions, id_fault, parse_name
from pipeline.cohort.patients import PatientVolumes, read_patient, volume_names
from pipeline.cohort.volumes import read_case
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import replace_all
from pipeline.imaging.nifti import nifti_bytes
from pipeline.progress import progress
from pipeline.scripts.faults import fault_lines, shown
from pipeline.scripts.files import sha256_bytes, write_durably

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderContent:
    """The usable patients of a folder, and what happened to all other files.

    Args:
        records: What the manifest records about each usable patient, by id.
        skipped: Why a file is not used, by path.
        refused: Why a file cannot be used, by path.
        faults: Error messages, by path or patient id.
        faulty: Ids of the patients with an error.
        hashes: SHA-256 of every file of a patient that could be read, by path.
    """

    records: Mapping[str, PatientRecord] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, list[str]] = field(default_factory=dict)
    faulty: frozenset[str] = frozenset()
    hashes: Mapping[str, str] = field(default_factory=dict)

    def without(self, subjects: Collection[str], reason: str) -> FolderContent:
        """A copy without some patients, whose files become refused.

        Args:
            subjects: Ids of the patients, or paths of their files.
            reason: Why the files are refused.
        """
        out = [name for name, record in self.records.items() if not {name, *record.sources}.isdisjoint(subjects)]
        refused = {path: reason for name in out for path in self.records[name].sources}
        kept = {name: record for name, record in self.records.items() if name not in out}
        return replace(self, records=kept, refused={**self.refused, **refused})

    def counts(self, listing: Listing) -> dict[str, int]:
        """The numbers of found, used, skipped and refused files. Found is the sum of the other three."""
        used = {path for record in self.records.values() for path in record.sources}
        counts = {"used": len(used), "skipped": len(self.skipped), "refused": len(self.refused)}
        found = len(listing.stamps)
        if used | set(self.skipped) | set(self.refused) != set(listing.stamps) or sum(counts.values()) != found:
            raise PipelineError(f"files do not add up: {found} found, {counts}. Please report this.")
        return {"found": found, **counts}


@dataclass(frozen=True)
class Found:
    """The patients of a folder, found only by names, and a function that reads one of them.

    Args:
        files: Paths of a patient's files, by patient id.
        read: Function that reads the patient with the id it is given.
        skipped: Why a file is not used, by path.
        refused: What is wrong with a file, by path, for files that belong to no patient that is read.
        faulty: Ids of patients with a refused file.
        owners: Patient id and the file's role as the end of a name, such as ``_3_mask.tif``, by path. Files that are
            not used are included.
        has_volumes: Whether the patients come as volumes, not as slices.
    """

    files: Mapping[str, Sequence[str]]
    read: Callable[[str], PatientVolumes]
    skipped: Mapping[str, str]
    refused: Mapping[str, str]
    faulty: Collection[str]
    owners: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    has_volumes: bool = False

    @property
    def names(self) -> set[str]:
        """The valid ids of all patients. For volumes, patients without a mask are included."""
        others = {patient for patient, _ in self.owners.values() if not id_fault(patient)} if self.has_volumes else ()
        return {name for name in self.files if not id_fault(name)}.union(others)


def find_patients(
    root: Path,
    listing: Listing,
    staging: Path,
    *,
    allow_gaps: bool = False,
    skip_unpaired: bool = False,
    label_values: Sequence[float] = (),
) -> Found:
    """The patients in a folder of slices with masks, or of volumes with masks.

    Args:
        root: The source folder.
        listing: All files of the source folder.
        staging: Folder for the finished volumes of a patient that comes as volumes.
        allow_gaps: Accept missing slice numbers, with a warning.
        skip_unpaired: Skip images without a mask and masks without an image.
        label_values: Values in a label volume that mean lesion; empty if each label holds only 0 and one other value.

    Raises:
        PipelineError: The folder holds both slices and volumes.
    """
    cases = find_cases(root, listing, skip_unpaired=skip_unpaired)
    slices = find_slices(root, listing, allow_gaps=allow_gaps, skip_unpaired=skip_unpaired)
    whole = [name for name, case in cases.cases.items() if not case.fault]
    masked = {
        slices.owners[path][0]
        for paths in slices.files.values()
        for path in paths
        if slices.owners[path][1].endswith("_mask.tif")
    }
    if whole and masked:
        raise PipelineError(
            f"{root}: holds {len(masked)} patients in slices and {len(whole)} in volumes (expected one kind). "
            "Give a folder with one kind."
        )
    if not whole and (slices.files or not (cases.cases or cases.faults)):
        return slices
    return _found_volumes(root, listing, cases, staging, label_values)


def find_slices(
    root: Path, listing: Listing, *, masks: bool = True, allow_gaps: bool = False, skip_unpaired: bool = False
) -> Found:
    """The patients in a folder of slices.

    Args:
        root: The source folder.
        listing: All files of the source folder.
        masks: Whether each image needs a mask. If not, masks are skipped.
        allow_gaps: Accept missing slice numbers, with a warning.
        skip_unpaired: Skip images without a mask and masks without an image.
    """
    patients, refused, faulty = slices_by_patient(listing)
    files = {name: [file for file in group if masks or file.kind == "image"] for name, group in patients.items()}
    unused = [file for group in patients.values() for file in group if not masks and file.kind == "mask"]
    return Found(
        {name: [str(file.path) for file in group] for name, group in files.items() if group},
        lambda name: read_patient(
            root, name, files[name], masks=masks, allow_gaps=allow_gaps, skip_unpaired=skip_unpaired
        ),
        {**listing.skipped, **{str(file.path): "mask, not used" for file in unused}},
        refused,
        faulty,
        slice_owners(listing.stamps),
    )


def owners_of(root: Path, listing: Listing) -> Mapping[str, tuple[str, str]]:
    """Patient id and role, by path, of all files whose names show them. The role is the end of a name."""
    return find_patients(root, listing, root).owners


def slice_owners(paths: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Patient id and role, such as ``_3_mask.tif``, by path, of all paths with names of slices."""
    owners = {}
    for path in paths:
        with contextlib.suppress(PipelineError):
            if file := parse_name(PurePosixPath(path)):
                owners[path] = file.patient, f"_{file.number}{'_mask' if file.kind == 'mask' else ''}.tif"
    return owners


def _found_volumes(root: Path, listing: Listing, cases: Cases, staging: Path, label_values: Sequence[float]) -> Found:
    skipped = {path: reason for path, reason in listing.skipped.items() if path not in cases.owners}
    slices = dict.fromkeys(listing.slices, "not a volume")
    refused = {**listing.faults, **cases.faults}
    return Found(
        {name: case.paths for name, case in cases.cases.items()},
        lambda name: read_case(root, name, cases.cases[name], staging, label_values),
        {path: reason for path, reason in {**skipped, **slices, **cases.skipped}.items() if path not in refused},
        refused,
        (),
        cases.owners,
        has_volumes=True,
    )


def read_patients(found: Found, staging: Path, *, skip_faulty: bool = False) -> FolderContent:
    """Read every patient of a folder, and write the volumes into ``staging``.

    Errors in files are collected, not raised. After the first one, volumes are written only with ``skip_faulty``.

    Args:
        found: The patients of the folder.
        staging: Folder for the finished volumes.
        skip_faulty: Whether patients with an error are left out, so that volumes of the others are needed.
    """
    skipped, refused, faulty = dict(found.skipped), dict(found.refused), set(found.faulty)
    faults: dict[str, list[str]] = defaultdict(list)
    for path, fault in refused.items():
        faults[shown(path)].append(fault)
    for group in case_collisions(found.files):
        faulty.update(group)
        for name in group:
            faults[name].append(f"ids differ only in case: {', '.join(group)}. Rename one.")
    records: dict[str, PatientRecord] = {}
    hashes: dict[str, str] = {}
    shutil.rmtree(staging, ignore_errors=True)
    for name in progress(sorted(found.files), "volumes" if found.has_volumes else "slices", "patient"):
        patient = found.read(name)
        hashes |= patient.hashes
        for subject, messages in patient.faults.items():
            faults[shown(subject)] += messages
        if patient.record and name not in faulty:
            skipped |= patient.skipped
            records[name] = _staged(patient, patient.record, staging) if skip_faulty or not faults else patient.record
        else:
            faulty.add(name)
            for path in found.files[name]:
                own = "; ".join(patient.faults.get(path, ()))
                refused[path] = own or f"patient {name} was left out because of an error"
        del patient  # free the memory of its volumes before the next patient is read
    return FolderContent(records, skipped, refused, dict(faults), frozenset(faulty), hashes)


def slices_by_patient(listing: Listing) -> tuple[dict[str, list[SliceFile]], dict[str, str], set[str]]:
    """The slices of a folder by patient id, with the files that are refused because of their name or link.

    Returns:
        Slices by patient id, what is wrong with a file by path, and the ids of patients with such a file.
    """
    patients: dict[str, list[SliceFile]] = defaultdict(list)
    refused: dict[str, str] = {}
    faulty: set[str] = set()
    for path in (*listing.slices, *listing.faults):
        file, fault = None, listing.faults.get(path)
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError as error:
            fault = fault or str(error)
        if file and not fault:
            patients[file.patient].append(file)
        elif fault:
            refused[path] = fault
            faulty |= {file.patient} if file else set()
    return patients, refused, faulty & patients.keys()


def _staged(patient: PatientVolumes, record: PatientRecord, staging: Path) -> PatientRecord:
    """Write a patient's stacked slices into ``staging``, and return the record with their hashes."""
    hashes: dict[str, Any] = {}
    volumes = {"image_sha256": patient.image, "label_sha256": patient.label}
    for (key, volume), file in zip(volumes.items(), volume_names(patient.name), strict=True):
        if volume is not None:
            data = nifti_bytes(volume)
            write_durably(staging / file, data)
            hashes[key] = sha256_bytes(data)
    return replace(record, **hashes)


def build_images(root: Path, target: Path, *, allow_gaps: bool = False, names: Mapping[str, str] | None = None) -> None:
    """Build the image volume ``NAME_image.nii.gz``, (H, W, D, 3) uint8, of every patient in a folder of slices.

    Masks in the folder are skipped. After an error, ``target`` stays as it was.

    Args:
        root: The folder of slices.
        target: The folder for the volumes.
        allow_gaps: Accept missing slice numbers, with a warning.
        names: Name of the volume by patient id, if it differs from the id.

    Raises:
        ManifestError: Files in the folder have errors; the message lists all of them.
    """
    listing, staging = list_files(root), target / STAGING
    try:
        content = read_patients(find_slices(root, listing, masks=False, allow_gaps=allow_gaps), staging)
        if content.faults:
            error = ManifestError(content.faults)
            error.add_note(counts_line(content.without(content.records, "another file has an error").counts(listing)))
            raise error
        named = {name: (names or {}).get(name, name) for name in content.records}
        volumes = {staging / volume_names(old)[0]: target / volume_names(new)[0] for old, new in named.items()}
        replace_all(volumes, staging / "before")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info(counts_line(content.counts(listing)))
    oddities = [(named[name], oddity) for name, record in content.records.items() for oddity in record.warnings]
    for line in fault_lines(oddities).splitlines():
        logger.warning(line)
