"""Find differences between a manifest and its source folder: files that changed or are missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.cohort.listing import Listing, counts_line, hash_of, list_files
from pipeline.cohort.manifest import Manifest, is_of_others, read_manifest, verify_volume
from pipeline.cohort.pseudonyms import aliases, read_key
from pipeline.cohort.reading import owners_of
from pipeline.errors import ManifestError, PipelineError
from pipeline.progress import progress
from pipeline.scripts.manifest import is_pseudonymised

_CHANGED = "Restore it, or pass --rebuild to use the folder as it is now."

Sources = dict[str, dict[str, str]]
"""SHA-256 of each source file when the manifest was built, by patient id and path in the source folder."""


def known_sources(manifest: Manifest, root: Path, listing: Listing, key: Path | None) -> tuple[Sources, dict[str, str]]:
    """The source files of a manifest, checked to belong to this folder.

    Args:
        manifest: The manifest that was built from the folder.
        root: The source folder.
        listing: All files of the source folder.
        key: Path of the CSV with the pseudonyms; None if the manifest is not pseudonymised.

    Returns:
        The sources, and the path in the folder by the path in the manifest, where these two differ.

    Raises:
        PipelineError: The key does not fit the manifest, or the manifest was built from another folder.
    """
    done = is_pseudonymised(manifest.raw)
    if done != bool(key):
        how = "pseudonymised: pass --pseudonymise KEY" if done else "not pseudonymised: leave --pseudonymise out"
        raise PipelineError(f"{manifest.path}: {how}, or replace it with --rebuild.")
    if key and not key.is_file():
        raise PipelineError(f"{key}: no key, but {manifest.path} was built with one. Restore it, or pass --rebuild.")
    by_path = aliases(listing.stamps, owners_of(root, listing), read_key(key)) if key else {}
    names = {alias: path for path, alias in by_path.items()}
    known = {
        patient: {names.get(path, path): sha256 for path, sha256 in info.get("sources", {}).items()}
        for patient, info in manifest.patients.items()
    }
    used = [path for sources in known.values() for path in sources]
    if used and listing.stamps.keys().isdisjoint(used):
        raise PipelineError(
            f"{manifest.path}: built from another folder: none of its {len(used)} files is in this one. "
            "Choose another --out, or pass --rebuild to replace it."
        )
    return known, names


def changes(known: Sources, paths: Collection[str], hashes: Mapping[str, str]) -> dict[str, list[str]]:
    """The messages about source files that changed or are missing, by path or patient id.

    Args:
        known: The source files when the manifest was built.
        paths: Paths of the files that exist now.
        hashes: SHA-256 of the files that were read now, by path.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    for patient, sources in known.items():
        gone = [path for path in sources if path not in paths]
        if gone:
            names = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
            faults[patient].append(f"{len(gone)} file(s) missing since the manifest was built: {names}. {_CHANGED}")
        for path, expected in sources.items():
            if hashes.get(path, expected) != expected:
                faults[path].append(
                    f"changed since the manifest was built (found SHA-256 {hashes[path][:12]}…, "
                    f"expected {expected[:12]}…). {_CHANGED}"
                )
    return dict(faults)


def verify_manifest(source: str | Path, out: str | Path, pseudonymise: str | Path | None = None) -> str:
    """Check the SHA-256 of every source file and volume of a manifest again. Nothing is written.

    Args:
        source: The source folder of the manifest.
        out: The folder of ``manifest.json``.
        pseudonymise: Path of the CSV with the pseudonyms; None if the manifest has none.

    Returns:
        Two lines for the user: how many files agree, and the counts of the manifest.

    Raises:
        ManifestError: Files changed, are missing or cannot be read; the message lists all of them.
        PipelineError: The manifest cannot be read, or does not belong to the folder.
    """
    listing, manifest = list_files(Path(source)), read_manifest(out)
    if is_of_others(manifest.raw):
        raise PipelineError(f"{manifest.path}: a datalist of another program, without SHA-256. Choose another --out.")
    known, names = known_sources(manifest, Path(source), listing, Path(pseudonymise) if pseudonymise else None)
    faults: dict[str, list[str]] = defaultdict(list)
    hashes: dict[str, str] = {}
    for volume in progress(manifest.volumes, "verify", "patient"):
        try:
            verify_volume(volume)
        except PipelineError as error:
            faults[volume.patient].append(str(error))
        for path in filter(listing.stamps.__contains__, known[volume.patient]):
            try:
                hashes[path] = hash_of(Path(source) / path)
            except PipelineError as error:
                faults[path].append(str(error))
    for subject, messages in changes(known, listing.stamps, hashes).items():
        faults[subject] += messages
    if faults:
        raise ManifestError(faults)
    left_out = {entry["path"] for key in ("skipped", "refused") for entry in manifest.raw.get(key, [])}
    new = listing.stamps.keys() - hashes.keys() - {names.get(path, path) for path in left_out}
    added = f"; {len(new)} file(s) in the folder are not in the manifest: run without --verify to add them"
    return (
        f"verified: {len(hashes)} source files and {2 * len(manifest.volumes)} volumes agree with the manifest"
        f"{added if new else ''}\n{counts_line(manifest.raw['counts'])}"
    )
