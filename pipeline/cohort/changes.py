"""What makes a manifest and its folder differ: files that changed or are gone, hashes that no longer hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.cohort.listing import Listing, read_bytes
from pipeline.cohort.manifest import Manifest, read_manifest, verify_volume
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.files import sha256_bytes
from pipeline.scripts.manifest import MANIFEST_NAME

_CHANGED = "Restore it, or pass --rebuild to take the folder as it is now."


def earlier_manifest(folder: Path) -> Manifest | None:
    """The manifest of an earlier run, None where there is none."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return read_manifest(folder)
    except PipelineError as error:
        raise PipelineError(f"{error} Or pass --rebuild to replace it.") from error


def changes(
    earlier: Manifest, paths: Collection[str], hashes: Mapping[str, str], names: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Files of the earlier manifest that have another content now, or are gone: path or patient id -> messages.

    ``hashes`` are SHA-256 of now. ``names`` maps paths of a pseudonymised manifest to paths of the source folder.
    """
    known = {patient: _sources(info, names) for patient, info in earlier.patients.items()}
    used = [path for sources in known.values() for path in sources]
    if used and not any(path in paths for path in used):
        raise PipelineError(
            f"{earlier.path}: built from another folder, none of its {len(used)} files is here. "
            "Choose another --out, or pass --rebuild to replace it."
        )
    faults: dict[str, list[str]] = defaultdict(list)
    for patient, sources in known.items():
        gone = [path for path in sources if path not in paths]
        if gone:
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            faults[patient].append(
                f"{len(gone)} file(s) gone since the manifest was built: {', '.join(gone[:5])}{more}. {_CHANGED}"
            )
        for path, expected in sources.items():
            if path in hashes and hashes[path] != expected:
                faults[path].append(
                    f"changed since the manifest was built (found SHA-256 {hashes[path][:12]}…, "
                    f"expected {expected[:12]}…). {_CHANGED}"
                )
    return dict(faults)


def verify(root: Path, manifest: Manifest, listing: Listing, names: Mapping[str, str] | None = None) -> str:
    """Recheck every hash of the manifest, of sources and volumes."""
    from tqdm import tqdm

    faults: dict[str, list[str]] = defaultdict(list)
    hashes: dict[str, str] = {}
    volumes = [volume for section in manifest.sections.values() for volume in section]
    for volume in tqdm(volumes, desc="verify", unit="patient", disable=None):
        try:
            verify_volume(volume)
        except PipelineError as error:
            faults[volume.patient].append(str(error))
        for path in _sources(manifest.patients[volume.patient], names):
            if path in listing.stamps:
                try:
                    hashes[path] = sha256_bytes(read_bytes(root / path))
                except PipelineError as error:
                    faults[path].append(str(error))
    for subject, messages in changes(manifest, listing.stamps, hashes, names).items():
        faults[subject] += messages
    if faults:
        raise ManifestError(faults)
    left_out = {entry["path"] for key in ("skipped", "refused") for entry in manifest.raw.get(key, [])}
    known = {(names or {}).get(path, path) for path in left_out} | set(hashes)
    new = len(set(listing.stamps) - known)
    note = f"; {new} file(s) in the folder are not in the manifest: run without --verify to add them" if new else ""
    return f"verified: {len(hashes)} source files and {2 * len(volumes)} volumes agree with the manifest{note}"


def _sources(info: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Path -> SHA-256 of one patient's entry, empty where the entry holds none."""
    sources = info.get("sources")
    return (
        {(names or {}).get(path, path): sha256 for path, sha256 in sources.items()} if isinstance(sources, dict) else {}
    )
