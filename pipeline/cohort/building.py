"""Build a manifest from a folder of slices or volumes: list the files, read, check, split and write them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cohort.changes import changes, known_sources
from pipeline.cohort.listing import counts_line, list_files
from pipeline.cohort.manifest import STAGING, Manifest, is_of_others, read_manifest, unchanged, write_manifest
from pipeline.cohort.names import institution
from pipeline.cohort.patients import volume_names
from pipeline.cohort.pseudonyms import aliases, check_place, key_for, pseudonymised
from pipeline.cohort.reading import FolderContent, Found, find_patients, read_patients
from pipeline.cohort.splits import DRAWN, Division, choose_split, divide
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.faults import fault_lines
from pipeline.scripts.files import locked
from pipeline.scripts.manifest import CHANNELS, MANIFEST_NAME, SECTIONS, VOLUMES

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
ABOUT_SLICES = {
    "name": "LGG FLAIR abnormality",
    "description": "Pre-contrast, FLAIR and post-contrast MRI slices as one volume per patient. Research only.",
    "reference": "M. Buda, A. Saha, M. A. Mazurowski, Computers in Biology and Medicine 109 (2019); "
    "M. A. Mazurowski et al., Journal of Neuro-Oncology 133 (2017); "
    "images from TCGA-LGG, The Cancer Imaging Archive",
    "licence": "that of the source folder; the published LGG Segmentation Dataset: CC BY-NC-SA 4.0",
}
ABOUT_VOLUMES = {
    "name": "FLAIR abnormality",
    "description": "FLAIR volumes, (I, J, K), or with pre- and post-contrast T1, (I, J, K, 3), in the orientation of "
    "their source. Research only.",
    "reference": "that of the source folder",
    "licence": "that of the source folder",
}
"""What a manifest says about its data as a whole."""


@dataclass(frozen=True)
class BuildResult:
    """The result of ``build_manifest``.

    Args:
        content: The content of ``manifest.json``.
        is_new: Whether the manifest was written. False means that nothing had changed since the last call.
    """

    content: dict[str, Any]
    is_new: bool


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
    label_values: Sequence[float] = (),
    pseudonymise: str | Path | None = None,
    rebuild: bool = False,
) -> BuildResult:
    """Build a manifest and its volumes from a folder of slices or volumes.

    The manifest counts every file of the folder as used, skipped or refused. Volumes keep their affine, spacing and
    orientation. Their labels become 0 and 1 on the image's grid.

    Args:
        source: The published folder, with ``<patient>_<number>.tif`` and ``<patient>_<number>_mask.tif``; or a folder
            of image and mask volumes, named as by BraTS, BIDS, nnU-Net, Decathlon, or in pairs.
        out: The folder for ``manifest.json`` and ``volumes/``. It must lie outside ``source``.
        split: ``reference`` (the ten published validation patients), ``random``, ``stratified``, ``none`` (all patients
            in the test section), or the path of a JSON file with lists of patient ids for sections, folds or both.
        seed: Seed of random and stratified splits and of folds, 0 or more.
        validation_fraction: Share of persons for validation, from 0 to below 1, for random and stratified splits.
        test_fraction: Share of persons for the test, from 0 to below 1, for random and stratified splits.
        folds: Number of folds for the patients outside the test section, at least 2; None for no folds, or for those
            that the JSON file lists.
        allow_gaps: Accept missing slice numbers, with a warning.
        skip_unpaired: Skip images without a mask and masks without an image.
        skip_faulty: Leave out every patient with an error, and build the manifest of the others.
        label_values: Values in a label volume that mean lesion. They can be left empty if each label holds only 0 and
            one other value.
        pseudonymise: Path of a CSV of ids and pseudonyms, which is read and extended. It must lie outside ``source``
            and ``out``. None keeps the ids.
        rebuild: Replace an earlier manifest, even if files have changed or it belongs to another folder.

    Returns:
        The manifest's content, and whether it was written.

    Raises:
        ManifestError: Files in the folder have errors; the message lists all of them.
        PipelineError: Options contradict each other, ``out`` holds the manifest of another folder, or a file cannot be
            written.

    Examples:
        >>> import pipeline
        >>> result = pipeline.build_manifest("kaggle_3m", "all_for_test", split="none")
        >>> len(result.content["test"]) == result.content["numTest"]
        True
        >>> len(result.content["training"])
        0
    """
    source, out = Path(source), Path(out)
    listing = list_files(source)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise PipelineError(f"--out {out} lies inside the source folder {source}. Choose a folder outside it.")
    key_path = Path(pseudonymise) if pseudonymise else None
    if key_path:
        check_place(key_path, source, out)
    choice = choose_split(str(split), seed, validation_fraction, test_fraction, folds)
    reading = {"allow_gaps": allow_gaps, "skip_unpaired": skip_unpaired, "skip_faulty": skip_faulty}
    # These options decide the content of the manifest. They hold no path, so that a moved folder gives the same one.
    options = {
        **reading,
        "split": choice.method,
        **({"label_values": sorted(label_values)} if label_values else {}),
        "split_sha256": choice.listed.sha256(),
        "seed": seed,
        **({"pseudonymised": True} if key_path else {}),
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "folds": choice.folds,
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
    }
    staging = out / STAGING
    if not rebuild and unchanged(out, options, listing):
        if staging.exists():  # left by a run that was killed after it had written everything
            with locked(out):
                shutil.rmtree(staging, ignore_errors=True)
        return BuildResult(json.loads((out / MANIFEST_NAME).read_bytes()), is_new=False)
    with locked(out, (VOLUMES,)):
        try:
            earlier = _earlier_manifest(out, rebuild=rebuild)
            known = known_sources(earlier, source, listing, key_path)[0] if earlier and not rebuild else {}
            found = find_patients(
                source,
                listing,
                staging,
                allow_gaps=allow_gaps,
                skip_unpaired=skip_unpaired,
                label_values=label_values,
            )
            content = read_patients(found, staging, skip_faulty=skip_faulty)
            changed = changes(known, listing.stamps, content.hashes)
            content = content.without(changed, "changed since the manifest was built")
            counts = content.counts(listing)
            try:
                _judge(source, found, content.faults, changed, skip_faulty)
                division = divide(content.records, choice, content.faulty)
            except PipelineError as error:
                error.add_note(counts_line(counts))
                raise
            # JSON turns tuples into lists, so that the content is the same as when the file is read.
            about = ABOUT_VOLUMES if found.has_volumes else ABOUT_SLICES
            manifest = json.loads(json.dumps(_content(content, counts, options, division, about)))
            key = key_for(key_path, found.names) if key_path else {}
            if key:
                manifest = pseudonymised(manifest, key, aliases(listing.stamps, found.owners, key))
            staged = {
                f"{VOLUMES}/{new}": staging / file
                for name in content.records
                for file, new in zip(volume_names(name), volume_names(key.get(name, name)), strict=True)
            }
            write_manifest(out, manifest, staged, options, listing, staging=staging, earlier=earlier)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if earlier:
        _warn_of_moves(earlier, manifest)
    return BuildResult(manifest, is_new=True)


def _earlier_manifest(out: Path, *, rebuild: bool) -> Manifest | None:
    """The manifest in ``out``; None if there is none, or if it is unreadable and ``rebuild`` may replace it."""
    was_killed, volumes = (out / STAGING).exists(), out / VOLUMES
    if not (out / MANIFEST_NAME).is_file():
        if volumes.is_dir() and not was_killed and any(path.is_file() for path in volumes.iterdir()):
            raise PipelineError(f"{volumes}: holds files of no manifest. Choose another --out, or move them away.")
        return None
    try:
        found = read_manifest(out)
    except PipelineError as error:
        if rebuild:
            return None
        raise PipelineError(f"{error} Or pass --rebuild to replace it.") from error
    if is_of_others(found.raw):
        raise PipelineError(f"{found.path}: a datalist of another program. Choose another --out, or move it away.")
    return found


def _judge(
    source: Path, found: Found, faults: Mapping[str, list[str]], changed: Mapping[str, list[str]], skip_faulty: bool
) -> None:
    """Refuse a folder without patients, with changed files, or with errors that may not be skipped."""
    if not found.files and not faults:
        raise PipelineError(
            f"{source}: no slice among {len(found.skipped)} file(s), and no volume with its mask (expected "
            "<patient>_<number>.tif and <patient>_<number>_mask.tif, or volumes such as X_image.nii.gz and "
            "X_mask.nii.gz). Check the path and the names."
        )
    if changed or (faults and not skip_faulty):
        raise ManifestError({one: [*faults.get(one, []), *changed.get(one, [])] for one in (*faults, *changed)})
    left_out = [(subject, "; ".join(messages)) for subject, messages in faults.items()]
    for line in fault_lines(left_out).splitlines():
        logger.warning("left out: %s", line)


def _warn_of_moves(earlier: Manifest, manifest: Mapping[str, Any]) -> None:
    """Warn if patients are in another section than before."""
    before = {volume.patient: volume.section for volume in earlier.volumes}
    now = {item["patient"]: section for section in SECTIONS for item in manifest[section]}
    moved = sum(before.get(patient, section) != section for patient, section in now.items())
    if moved:
        logger.warning("split changed: %d patients are in another section; weights may be trained on them", moved)


def _content(
    found: FolderContent,
    counts: Mapping[str, int],
    options: Mapping[str, Any],
    division: Division,
    about: Mapping[str, str],
) -> dict[str, Any]:
    """The content of manifest.json. It has no time, host or absolute path, so that two builds agree byte for byte."""
    lists: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    patients: dict[str, Any] = {}
    warnings: list[dict[str, str | None]] = []
    if division.warning:
        warnings.append({"patient": None, "kind": "split", "message": division.warning})
    sections, folds = division.sections, division.folds
    for name, record in sorted(found.records.items()):
        image, label = (f"{VOLUMES}/{file}" for file in volume_names(name))
        fold = {"fold": folds[name]} if name in folds else {}
        lists[sections[name]].append({"image": image, "label": label, "patient": name, **fold})
        own = {"section": sections[name], "fold": folds.get(name), "institution": institution(name)}
        patients[name] = own | asdict(record)
        for warning in record.warnings:
            kind, _, message = warning.partition(": ")
            warnings.append({"patient": name, "kind": kind, "message": message})
    for subject, messages in found.faults.items():
        warnings += [{"patient": None, "kind": "left out", "message": f"{subject}: {text}"} for text in messages]
    drawn = options["split"] in DRAWN
    return {
        **about,
        "tensorImageSize": "4D",
        "modality": {str(index): channel for index, channel in enumerate(CHANNELS)},
        "labels": {"0": "background", "1": "FLAIR abnormality"},
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
        **{f"num{section.capitalize()}": len(lists[section]) for section in SECTIONS},
        "split": {
            "method": options["split"],
            "seed": options["seed"],
            "validation_fraction": options["validation_fraction"] if drawn else None,
            "test_fraction": options["test_fraction"] if drawn else None,
            "folds": options["folds"],
        },
        "options": dict(options),
        "counts": dict(counts),
        **lists,
        "patients": patients,
        "skipped": [{"path": path, "reason": reason} for path, reason in sorted(found.skipped.items())],
        "refused": [{"path": path, "reason": reason} for path, reason in sorted(found.refused.items())],
        "warnings": warnings,
    }
