"""All files of the source folder -> usable patients, and a fate for every single file."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.errors import ManifestError, PipelineError
from pipeline.files import Listing, counts_line, list_files, replace_all
from pipeline.patients import Patient, read_images, read_patient, volume_names
from pipeline.records import PatientRecord, SliceFile
from pipeline.scripts.faults import shown
from pipeline.scripts.files import write_durably
from pipeline.slices import case_collisions, parse_name
from pipeline.volumes import nifti_bytes


@dataclass
class Intake:
    """What a run has found.

    Args:
        records: usable patients by id.
        skipped: path -> reason.
        refused: path -> reason.
        faults: path or patient id -> messages.
        faulty: ids of patients with a fault.
        hashes: path -> SHA-256 of every slice file that could be read.
    """

    records: dict[str, PatientRecord] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    faulty: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)

    def refuse(self, changed: Iterable[str]) -> None:
        """Refuse all used files of the patients that hold one of these paths, or bear one of these ids."""
        subjects = set(changed)
        for name, record in list(self.records.items()):
            if name in subjects or subjects & set(record.sources):
                del self.records[name]
                self.refused |= dict.fromkeys(record.sources, "changed since the manifest was built")

    def counts(self, listing: Listing) -> dict[str, int]:
        """Found, used, skipped and refused files; found is the sum of the other three.

        Raises:
            PipelineError: they do not add up, a fault of this program.
        """
        used = {path for record in self.records.values() for path in record.sources}
        counts = {"used": len(used), "skipped": len(self.skipped), "refused": len(self.refused)}
        if used | set(self.skipped) | set(self.refused) != set(listing.stamps) or sum(counts.values()) != len(
            listing.stamps
        ):
            raise PipelineError(f"files do not add up: {len(listing.stamps)} found, {counts}. Please report this.")
        return {"found": len(listing.stamps), **counts}


def read_folder(
    root: Path, listing: Listing, staging: Path, *, allow_gaps: bool, skip_unpaired: bool, skip_faulty: bool
) -> Intake:
    """Sort the files by patient, read every patient, and stage the volumes as long as no fault forbids them.

    Args:
        root: source folder.
        listing: of ``root``.
        staging: folder for the finished volumes, emptied first.
        allow_gaps: missing slice numbers are a warning.
        skip_unpaired: images without mask and masks without image are skipped.
        skip_faulty: go on staging after a fault.

    Raises:
        PipelineError: a volume cannot be written; faults of the files are collected instead.
    """
    intake = Intake(skipped=dict(listing.skipped))
    patients = _by_patient(listing, intake)
    for group in case_collisions(patients):
        for name in group:
            intake.faulty.add(name)
            intake.faults[name].append(
                f"ids differ only in case: {', '.join(group)} (expected ids that differ otherwise). Rename one."
            )
    shutil.rmtree(staging, ignore_errors=True)

    def keep(name: str, data: bytes) -> None:
        write_durably(staging / name, data)

    for name in tqdm(sorted(patients), desc="manifest", unit="patient", disable=None):
        wanted = name not in intake.faulty and (skip_faulty or not intake.faults)
        patient = read_patient(
            root,
            name,
            patients[name],
            allow_gaps=allow_gaps,
            skip_unpaired=skip_unpaired,
            keep=keep if wanted else None,
        )
        _settle(intake, patient)
    return intake


def slice_patients(root: Path) -> list[str]:
    """Ids of the patients whose images lie below a folder, by their file names alone; empty where no slice does.

    Args:
        root: a folder.

    Raises:
        PipelineError: no folder.
    """
    return sorted(
        name
        for name, files in _by_patient(list_files(root), Intake()).items()
        if any(file.kind == "image" for file in files)
    )


def stage_images(
    root: Path, target: Path, *, allow_gaps: bool, names: Mapping[str, str] | None = None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Build the image volume of every patient below a folder of slices without truth; masks there are passed over.

    Args:
        root: source folder.
        target: folder for ``NAME_image.nii.gz``, (H, W, D, 3) uint8; after a fault what was there stays as it was.
        allow_gaps: missing slice numbers are a warning.
        names: patient id -> the name of its volume, where that is another.

    Returns:
        Patient id -> what is odd but used; and found, used, skipped and refused files, as ``Intake.counts``.

    Raises:
        ManifestError: every fault of every file, after a line of the same counts.
    """
    listing = list_files(root)
    intake = Intake(skipped=dict(listing.skipped))
    patients = _by_patient(listing, intake)
    for group in case_collisions(patients):
        intake.faults[group[0]].append(
            f"ids differ only in case: {', '.join(group)} (expected ids that differ otherwise). Rename one."
        )
    warnings: dict[str, list[str]] = {}
    used: set[str] = set()
    staging = target / ".building"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name in tqdm(sorted(patients), desc="slices", unit="patient", disable=None):
            intake.skipped |= {str(file.path): "mask, not looked at" for file in patients[name] if file.kind == "mask"}
            patient = Patient(name, patients[name])
            if not any(file.kind == "image" for file in patient.files):
                continue
            volume, warnings[name] = read_images(root, patient, allow_gaps=allow_gaps)
            for subject, messages in patient.faults.items():
                intake.faults[shown(subject)] += messages
            intake.skipped |= patient.skipped
            used |= set(patient.hashes) - set(patient.skipped)
            if volume is not None and not intake.faults:
                write_durably(staging / volume_names((names or {}).get(name, name))[0], nifti_bytes(volume))
        if intake.faults:
            used = set()  # one fault, and nothing is predicted
        skipped = set(intake.skipped) - set(intake.refused)
        counts = {"found": len(listing.stamps), "used": len(used), "skipped": len(skipped)}
        counts["refused"] = len(set(listing.stamps) - used - skipped) if intake.faults else 0
        if sum(counts.values()) != 2 * counts["found"]:
            raise PipelineError(f"files do not add up: {counts}. Please report this.")
        if intake.faults:
            print(counts_line(counts))
            raise ManifestError(intake.faults)
        replace_all({path: target / path.name for path in sorted(staging.glob("*"))}, staging / "before")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return warnings, counts


def patients_of(listing: Listing) -> list[str]:
    """Ids of all patients that a file of the listing names, with images or masks, sound or not."""
    return sorted(_by_patient(listing, Intake()))


def _by_patient(listing: Listing, intake: Intake) -> dict[str, list[SliceFile]]:
    """Slices by patient id; what bears no usable name, or is a broken link, is refused."""
    patients: dict[str, list[SliceFile]] = defaultdict(list)
    for path in listing.slices:
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError as error:
            intake.faults[shown(path)].append(str(error))
            intake.refused[path] = str(error)
            continue
        if file:
            patients[file.patient].append(file)
    for path, fault in listing.faults.items():
        intake.faults[shown(path)].append(fault)
        intake.refused[path] = fault
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError:
            continue
        if file and file.patient in patients:
            intake.faulty.add(file.patient)
    return patients


def _settle(intake: Intake, patient: Patient) -> None:
    """Enter a patient's files as used and skipped, or all of them as refused."""
    intake.hashes |= patient.hashes
    for subject, messages in patient.faults.items():
        intake.faults[shown(subject)] += messages
    if patient.record and patient.name not in intake.faulty:
        intake.records[patient.name] = patient.record
        intake.skipped |= patient.skipped
        return
    intake.faulty.add(patient.name)
    for file in patient.files:
        own = patient.faults.get(str(file.path))
        intake.refused[str(file.path)] = "; ".join(own) if own else f"patient {patient.name} was left out for a fault"
