"""All files of a folder of slices -> one volume a patient, and a fate for every single file."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.cohort.listing import Listing, counts_line, list_files
from pipeline.cohort.manifest import STAGING, PatientRecord
from pipeline.cohort.names import SliceFile, case_collisions, parse_name
from pipeline.cohort.patients import PatientVolumes, read_patient, volume_names
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import replace_all
from pipeline.imaging.nifti import nifti_bytes
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_bytes, write_durably


@dataclass(frozen=True)
class FolderContent:
    """What was found in a folder of slices.

    Args:
        records: Usable patients by id.
        skipped: Path -> why the file is not used.
        refused: Path -> why the file cannot be used.
        faults: Path or patient id -> messages.
        faulty: Ids of patients with a fault.
        hashes: Path -> SHA-256 of every slice file that could be read.
    """

    records: Mapping[str, PatientRecord] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, list[str]] = field(default_factory=dict)
    faulty: frozenset[str] = frozenset()
    hashes: Mapping[str, str] = field(default_factory=dict)

    def without(self, subjects: Collection[str], reason: str) -> FolderContent:
        """The same, with all used files refused of patients that bear one of these ids or hold one of these paths."""
        wanted = set(subjects)
        out = {name for name, record in self.records.items() if name in wanted or wanted & set(record.sources)}
        refused = {path: reason for name in sorted(out) for path in self.records[name].sources}
        kept = {name: record for name, record in self.records.items() if name not in out}
        return replace(self, records=kept, refused={**self.refused, **refused})

    def counts(self, listing: Listing) -> dict[str, int]:
        """Found, used, skipped and refused files; found is the sum of the other three."""
        found = len(listing.stamps)
        used = {path for record in self.records.values() for path in record.sources}
        counts = {"used": len(used), "skipped": len(self.skipped), "refused": len(self.refused)}
        if used | set(self.skipped) | set(self.refused) != set(listing.stamps) or sum(counts.values()) != found:
            raise PipelineError(f"files do not add up: {found} found, {counts}. Please report this.")
        return {"found": found, **counts}


@dataclass(frozen=True)
class BuiltImages:
    """Image volumes that were built of slices.

    Args:
        warnings: Patient id -> what is odd but used.
        counts: Found, used, skipped and refused files.
    """

    warnings: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]


def read_folder(
    root: Path,
    listing: Listing,
    staging: Path,
    *,
    masks: bool = True,
    allow_gaps: bool = False,
    skip_unpaired: bool = False,
    skip_faulty: bool = False,
    names: Mapping[str, str] | None = None,
) -> FolderContent:
    """Read every patient, and put the volumes into ``staging`` as long as no fault forbids it.

    Faults are collected, not raised. Without ``masks`` an image needs none and masks are passed over. ``names`` gives a
    patient's volumes another name than the id. ``skip_faulty`` stages the others' volumes after a fault.
    """
    patients, sorting = _by_patient(listing)
    faults = defaultdict(list, {subject: list(messages) for subject, messages in sorting.faults.items()})
    faulty, refused = set(sorting.faulty), dict(sorting.refused)
    skipped = dict(listing.skipped)
    records: dict[str, PatientRecord] = {}
    hashes: dict[str, str] = {}
    for group in case_collisions(patients):
        for name in group:
            faulty.add(name)
            faults[name].append(
                f"ids differ only in case: {', '.join(group)} (expected ids that differ otherwise). Rename one."
            )
    shutil.rmtree(staging, ignore_errors=True)
    for name in tqdm(sorted(patients), desc="slices", unit="patient", disable=None):
        if not masks:
            skipped |= {str(file.path): "mask, not looked at" for file in patients[name] if file.kind == "mask"}
            if all(file.kind == "mask" for file in patients[name]):
                continue
        patient = read_patient(
            root, name, patients[name], masks=masks, allow_gaps=allow_gaps, skip_unpaired=skip_unpaired
        )
        hashes |= patient.hashes
        for subject, messages in patient.faults.items():
            faults[shown(subject)] += messages
        if patient.faults or name in faulty:
            faulty.add(name)
            for file in patient.files:
                own = patient.faults.get(str(file.path))
                refused[str(file.path)] = "; ".join(own) if own else f"patient {name} was left out for a fault"
        else:
            skipped |= patient.skipped
            wanted = skip_faulty or not faults
            records[name] = _staged(patient, staging if wanted else None, (names or {}).get(name, name))
        del patient  # its volumes, before the next one's are read
    return FolderContent(records, skipped, refused, dict(faults), frozenset(faulty), hashes)


def build_images(
    root: Path, target: Path, *, allow_gaps: bool = False, names: Mapping[str, str] | None = None
) -> BuiltImages:
    """Build the image volume of every patient in a folder of slices without truth; masks there are passed over.

    Args:
        root: The source folder.
        target: The folder for ``NAME_image.nii.gz``, (H, W, D, 3) uint8. After a fault it stays as it was.
        allow_gaps: Accept missing slice numbers, with a warning.
        names: Patient id -> the name of its volume, where that is another.
    """
    listing, staging = list_files(root), target / STAGING
    try:
        content = read_folder(root, listing, staging, masks=False, allow_gaps=allow_gaps, names=names)
        if content.faults:
            refused = content.without(content.records, "another file has a fault")
            error = ManifestError(content.faults)
            error.add_note(counts_line(refused.counts(listing)))
            raise error
        replace_all({path: target / path.name for path in sorted(staging.glob("*"))}, staging / "before")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return BuiltImages({name: record.warnings for name, record in content.records.items()}, content.counts(listing))


def slice_patients(listing: Listing) -> list[str]:
    """Ids of the patients who have images in a folder, by file names alone; empty where no file is a slice."""
    found, _ = _by_patient(listing)
    return sorted(name for name, files in found.items() if any(file.kind == "image" for file in files))


def all_patients(listing: Listing) -> list[str]:
    """Ids of all patients that a file of a folder names, with images or masks, sound or not."""
    return sorted(_by_patient(listing)[0])


def refuse_faulty_names(listing: Listing) -> None:
    """Refuse a folder with slices whose names tell no patient, or links that cannot be followed."""
    faults = _by_patient(listing)[1].faults
    if faults:
        raise ManifestError(faults)


def _by_patient(listing: Listing) -> tuple[dict[str, list[SliceFile]], FolderContent]:
    """Slices by patient id; what bears no usable name, or is a broken link, is refused."""
    patients: dict[str, list[SliceFile]] = defaultdict(list)
    faults: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, str] = {}
    faulty: set[str] = set()
    for path in listing.slices:
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError as error:
            faults[shown(path)].append(str(error))
            refused[path] = str(error)
            continue
        if file:
            patients[file.patient].append(file)
    for path, fault in listing.faults.items():
        faults[shown(path)].append(fault)
        refused[path] = fault
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError:
            continue
        if file and file.patient in patients:
            faulty.add(file.patient)
    return patients, FolderContent(refused=refused, faults=dict(faults), faulty=frozenset(faulty))


def _staged(patient: PatientVolumes, staging: Path | None, name: str) -> PatientRecord:
    """What the manifest tells of a patient; its volumes are written where there is a folder for them."""
    image, label = patient.image, patient.label
    if image is None:
        raise PipelineError(f"{patient.name}: no volume. Please report this.")
    sha256 = ["", ""]
    if staging:
        for number, (file, volume) in enumerate(zip(volume_names(name), (image, label), strict=True)):
            if volume is not None:
                data = nifti_bytes(volume)
                write_durably(staging / file, data)
                sha256[number] = sha256_bytes(data)
    height, width, depth = image.shape[:3]
    return PatientRecord(
        patient=patient.name,
        shape=(height, width, depth),
        lesion_voxels=0 if label is None else int(label.sum()),
        missing_sequences=patient.missing_sequences,
        mask_values=patient.mask_values,
        warnings=patient.warnings,
        sources=dict(patient.sources),
        image_sha256=sha256[0],
        label_sha256=sha256[1],
    )
