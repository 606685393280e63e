"""A folder of slices -> a manifest: list, read, judge, split, write, in this order."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.cohort.changes import changes, earlier_manifest, verify
from pipeline.cohort.listing import Listing, counts_line, list_files
from pipeline.cohort.manifest import STAGING, Manifest, read_manifest, unchanged, write_manifest
from pipeline.cohort.names import institution
from pipeline.cohort.pseudonyms import aliases, check_place, key_for, pseudonymised, read_key
from pipeline.cohort.splits import DRAWN, Division, SplitChoice, choose_split, divide
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.files import locked, sha256_bytes
from pipeline.scripts.manifest import CHANNELS, MANIFEST_NAME, SECTIONS, VOLUMES

if TYPE_CHECKING:
    from pipeline.cohort.reading import FolderContent

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BuildRequest:
    """What manifest is to be built; the fields are the arguments of ``build_manifest``."""

    source: Path
    out: Path
    split: str = "reference"
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    folds: int | None = None
    allow_gaps: bool = False
    skip_unpaired: bool = False
    skip_faulty: bool = False
    pseudonymise: Path | None = None
    rebuild: bool = False


@dataclass(frozen=True)
class BuildResult:
    """A manifest that is in place.

    Args:
        content: The content of ``manifest.json``.
        is_new: False where source and options are as before, so that nothing was written.
        warnings: Patients that were left out, and how many stand in another section than before.
    """

    content: dict[str, Any]
    is_new: bool
    warnings: tuple[str, ...] = ()


def build_manifest(
    source: str | Path,
    out: str | Path = "data_manifest",
    *,
    split: str = "reference",
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    folds: int | None = None,
    allow_gaps: bool = False,
    skip_unpaired: bool = False,
    skip_faulty: bool = False,
    pseudonymise: str | Path | None = None,
    rebuild: bool = False,
) -> BuildResult:
    """Build a manifest and its volumes of a folder of slices; every file of the folder is accounted for.

    Args:
        source: The published folder, with ``<patient>_<number>.tif`` and ``<patient>_<number>_mask.tif``.
        out: The folder of ``manifest.json`` and ``volumes/``.
        split: reference (ten published validation patients), random, stratified, none, or a JSON file of ids.
        seed: Seed of random and stratified splits and of folds, 0 or more.
        validation_fraction: Share of the persons, for random and stratified splits.
        test_fraction: Share of the persons, for random and stratified splits.
        folds: Number of folds for the patients outside the test section; None for none.
        allow_gaps: Accept missing slice numbers, with a warning.
        skip_unpaired: Skip images without mask and masks without image.
        skip_faulty: Leave out every patient with a fault.
        pseudonymise: A CSV of ids and pseudonyms outside source and out, read and extended; None keeps the ids.
        rebuild: Take the folder as it is, whatever an earlier manifest says.

    Returns:
        The manifest's content, and whether it is new.

    Raises:
        ManifestError: Faults of the folder, all of them.
        PipelineError: Options that contradict each other, an earlier manifest of another folder, or the disk refuses.

    Example:
        >>> result = build_manifest("kaggle_3m", "data_manifest")
        >>> len(result.content["validation"])
        10
    """
    return build(
        BuildRequest(
            source=Path(source),
            out=Path(out),
            split=str(split),
            seed=seed,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            folds=folds,
            allow_gaps=allow_gaps,
            skip_unpaired=skip_unpaired,
            skip_faulty=skip_faulty,
            pseudonymise=Path(pseudonymise) if pseudonymise else None,
            rebuild=rebuild,
        )
    )


def build(request: BuildRequest) -> BuildResult:
    """Build the manifest that is asked for, as ``build_manifest``."""
    out = request.out
    listing = _listed(request.source, out, request.pseudonymise)
    choice = choose_split(
        request.split, request.seed, request.validation_fraction, request.test_fraction, request.folds
    )
    options = _options(request, choice)
    staging = out / STAGING
    if not request.rebuild and unchanged(out, options, listing):
        if staging.exists():  # of a run that was killed when it had written all
            with locked(out):
                shutil.rmtree(staging, ignore_errors=True)
        return BuildResult(json.loads((out / MANIFEST_NAME).read_bytes()), is_new=False)
    from pipeline.cohort.reading import read_folder

    with locked(out, (VOLUMES,)):
        try:
            earlier = None if request.rebuild else earlier_manifest(out)
            names = source_names(earlier, listing, request.pseudonymise) if earlier else None
            found = read_folder(
                request.source,
                listing,
                staging,
                allow_gaps=request.allow_gaps,
                skip_unpaired=request.skip_unpaired,
                skip_faulty=request.skip_faulty,
            )
            changed = changes(earlier, listing.stamps, found.hashes, names) if earlier else {}
            content = found.without(changed, "changed since the manifest was built")
            counts = content.counts(listing)
            left_out = [f"left out: {subject}: {'; '.join(texts)}" for subject, texts in content.faults.items()]
            notes = [counts_line(counts)]
            try:
                _judge(request, listing, content, changed)
                notes += [f"warning: {line}" for line in left_out]
                division = divide(content.records, choice, content.faulty)
            except PipelineError as error:
                for note in notes:
                    error.add_note(note)
                raise
            # Lists for tuples, as the file is read back.
            manifest = json.loads(json.dumps(_content(content, counts, choice, options, division)))
            staged = {item[part]: staging / Path(item[part]).name for item, part in _volumes_of(manifest)}
            if request.pseudonymise:
                manifest, staged = _with_pseudonyms(request.pseudonymise, listing, manifest, staging)
            earlier = earlier or _replaced(out)
            write_manifest(out, manifest, staged, options, listing, staging=staging, earlier=earlier)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return BuildResult(manifest, is_new=True, warnings=(*left_out, *_moved(earlier, manifest)))


def verify_manifest(source: str | Path, out: str | Path, pseudonymise: str | Path | None = None) -> str:
    """Recheck the SHA-256 of every source file and volume of a manifest; nothing is written."""
    key = Path(pseudonymise) if pseudonymise else None
    listing = _listed(Path(source), Path(out), key)
    manifest = read_manifest(out)
    names = source_names(manifest, listing, key)
    return f"{verify(Path(source), manifest, listing, names)}\n{counts_line(manifest.raw['counts'])}"


def source_names(manifest: Manifest, listing: Listing, key: Path | None) -> dict[str, str] | None:
    """Path in a pseudonymised manifest -> path in the source folder."""
    done = bool(manifest.raw.get("options", {}).get("pseudonymised"))
    if done != bool(key):
        how = "pseudonymised: pass --pseudonymise KEY" if done else "not pseudonymised: leave --pseudonymise out"
        raise PipelineError(f"{manifest.path}: {how}, or replace it by --rebuild.")
    if not key:
        return None
    if not key.is_file():
        raise PipelineError(f"{key}: no key, but {manifest.path} was built by one. Restore it, or pass --rebuild.")
    return {alias: path for path, alias in aliases(listing.stamps, read_key(key)).items()}


def _listed(source: Path, out: Path, key: Path | None) -> Listing:
    listing = list_files(source)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise PipelineError(f"--out {out} lies inside the source folder {source}. Choose a folder outside it.")
    if key:
        check_place(key, source, out)
    return listing


def _judge(request: BuildRequest, listing: Listing, content: FolderContent, changed: Mapping[str, list[str]]) -> None:
    """Refuse a folder without slices, with files that changed, or with faults that may not be skipped."""
    if not listing.slices and not content.faults:
        raise PipelineError(
            f"{request.source}: no slice among {len(listing.stamps)} file(s) (expected <patient>_<number>.tif and "
            "<patient>_<number>_mask.tif). Check the path."
        )
    if changed or (content.faults and not request.skip_faulty):
        subjects = dict.fromkeys([*content.faults, *changed])
        raise ManifestError({one: [*content.faults.get(one, []), *changed.get(one, [])] for one in subjects})


def _options(request: BuildRequest, choice: SplitChoice) -> dict[str, Any]:
    """The options that decide what is written; no path is among them."""
    listed = json.dumps(choice.listed, sort_keys=True).encode() if choice.listed else None
    return {
        **{key: getattr(request, key) for key in ("allow_gaps", "skip_unpaired", "skip_faulty")},
        "split": choice.method,
        "split_sha256": sha256_bytes(listed) if listed else None,
        "seed": choice.seed,
        **({"pseudonymised": True} if request.pseudonymise else {}),
        "validation_fraction": choice.validation_fraction,
        "test_fraction": choice.test_fraction,
        "folds": choice.folds,
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
    }


def _content(
    found: FolderContent, counts: Mapping[str, int], choice: SplitChoice, options: Mapping[str, Any], division: Division
) -> dict[str, Any]:
    """The content of manifest.json: no time, no host, no absolute path, so that two builds agree byte for byte."""
    from pipeline.cohort.patients import volume_names

    lists: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    patients: dict[str, Any] = {}
    warnings: list[dict[str, str | None]] = (
        [{"patient": None, "kind": "split", "message": division.warning}] if division.warning else []
    )
    sections, folds = division.sections, division.folds
    for name, record in sorted(found.records.items()):
        image, label = (f"{VOLUMES}/{file}" for file in volume_names(name))
        fold = {"fold": folds[name]} if name in folds else {}
        lists[sections[name]].append({"image": image, "label": label, "patient": name, **fold})
        entry = asdict(record)
        del entry["patient"]
        patients[name] = {"section": sections[name], "fold": folds.get(name), "institution": institution(name), **entry}
        for warning in record.warnings:
            kind, _, message = warning.partition(": ")
            warnings.append({"patient": name, "kind": kind, "message": message})
    for subject, messages in found.faults.items():
        warnings += [{"patient": None, "kind": "left out", "message": f"{subject}: {text}"} for text in messages]
    drawn = choice.method in DRAWN
    return {
        "name": "LGG FLAIR abnormality",
        "description": "Pre-contrast, FLAIR and post-contrast MRI slices as one volume per patient. Research only.",
        "reference": "M. Buda, A. Saha, M. A. Mazurowski, Computers in Biology and Medicine 109 (2019); "
        "M. A. Mazurowski et al., Journal of Neuro-Oncology 133 (2017); "
        "images from TCGA-LGG, The Cancer Imaging Archive",
        "licence": "that of the source folder; the published LGG Segmentation Dataset: CC BY-NC-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {str(index): channel for index, channel in enumerate(CHANNELS)},
        "labels": {"0": "background", "1": "FLAIR abnormality"},
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
        **{f"num{section.capitalize()}": len(lists[section]) for section in SECTIONS},
        "split": {
            "method": choice.method,
            "seed": choice.seed,
            "validation_fraction": choice.validation_fraction if drawn else None,
            "test_fraction": choice.test_fraction if drawn else None,
            "folds": choice.folds,
        },
        "options": dict(options),
        "counts": dict(counts),
        **lists,
        "patients": patients,
        "skipped": _by_path(found.skipped),
        "refused": _by_path(found.refused),
        "warnings": warnings,
    }


def _by_path(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "reason": reason} for path, reason in sorted(reasons.items())]


def _volumes_of(manifest: Mapping[str, Any]) -> list[tuple[dict[str, str], str]]:
    return [(item, part) for section in SECTIONS for item in manifest[section] for part in ("image", "label")]


def _with_pseudonyms(
    path: Path, listing: Listing, manifest: Mapping[str, Any], staging: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest with pseudonyms, and its volumes -> the staged files, which still bear the ids."""
    from pipeline.cohort.patients import volume_names
    from pipeline.cohort.reading import all_patients

    key = key_for(path, all_patients(listing))
    staged = {
        f"{VOLUMES}/{new}": staging / old
        for patient in manifest["patients"]
        for old, new in zip(volume_names(patient), volume_names(key[patient]), strict=True)
    }
    return pseudonymised(manifest, key, aliases(listing.stamps, key)), staged


def _replaced(out: Path) -> Manifest | None:
    """The manifest that ``rebuild`` replaces, None where it is missing or unreadable."""
    try:
        return earlier_manifest(out)
    except PipelineError:
        return None


def _moved(earlier: Manifest | None, manifest: Mapping[str, Any]) -> list[str]:
    """A warning where patients stand in another section than before."""
    if not earlier:
        return []
    before = {volume.patient: name for name, volumes in earlier.sections.items() for volume in volumes}
    now = {item["patient"]: section for section in SECTIONS for item in manifest[section]}
    moved = sum(before.get(patient, section) != section for patient, section in now.items())
    text = f"split changed: {moved} patients stand in another section; weights trained before may have seen them"
    return [text] if moved else []
