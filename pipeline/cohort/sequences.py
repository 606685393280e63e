"""Which sequence a volume file holds, told from its name: BraTS, BIDS and plain names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.imaging.formats import stem_of

_BIDS = re.compile(r"(?P<case>sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?)_(?P<rest>.*_)?(?P<name>flair|t1w)", re.IGNORECASE)
_PLAIN = re.compile(
    r"(?:(?P<case>.+?)[-_. ])?(?P<name>t2[-_]?flair|t2f|flair|t1n|t1c|t1ce|t1gd|t1[-_]?post|t1[-_]?pre|t1w|t1)",
    re.IGNORECASE,
)
_ROLES = {"t2f": "flair", "flair": "flair", "t2flair": "flair", "t1n": "pre", "t1w": "pre", "t1": "pre", "t1pre": "pre"}
"""Every other name that ``_PLAIN`` finds is post-contrast T1."""


@dataclass(frozen=True)
class Sequences:
    """The sequences of one patient, each a volume file; None for one that is not there."""

    flair: Path
    pre: Path | None = None
    post: Path | None = None


def role_of(path: Path) -> tuple[str, str] | None:
    """Patient and sequence that a file's name tells, such as ``("BraTS-GLI-00001-000", "flair")``.

    Args:
        path: The file. The folder names the patient where the name tells the sequence alone, as ``flair.nii.gz``.

    Returns:
        The patient, and ``flair``, ``pre`` or ``post``; None where the name tells no sequence of these.

    Example:
        >>> role_of(Path("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"))
        ('sub-01', 'post')
    """
    stem = stem_of(path.name)
    if found := _BIDS.fullmatch(stem):
        contrast = "_ce-" in f"_{(found['rest'] or '').lower()}"
        return found["case"], "flair" if found["name"].lower() == "flair" else "post" if contrast else "pre"
    if found := _PLAIN.fullmatch(stem):
        return found["case"] or path.parent.name, _ROLES.get(re.sub("[-_]", "", found["name"].lower()), "post")
    return None


def group(paths: Iterable[Path]) -> tuple[dict[str, Sequences], dict[Path, str], dict[str, str]]:
    """Volume files as patients.

    Args:
        paths: Volume files.

    Returns:
        Patient -> sequences; file -> why it is not used; patient -> why its files do not tell which is which.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    skipped: dict[Path, str] = {}
    for path in sorted(paths):
        role = role_of(path)
        if role is None:
            skipped[path] = "its name tells neither FLAIR nor T1"
        else:
            found.setdefault(role[0], {}).setdefault(role[1], []).append(path)
    patients: dict[str, Sequences] = {}
    unclear: dict[str, str] = {}
    for patient, roles in found.items():
        twice = [files for files in roles.values() if len(files) > 1]
        if twice:
            unclear[patient] = " and ".join(str(path) for path in twice[0])
        elif "flair" in roles:
            patients[patient] = Sequences(**_first_of(roles))
        else:
            skipped |= {path: f"no FLAIR of {patient} beside it" for files in roles.values() for path in files}
    return patients, skipped, unclear


def _first_of(roles: Mapping[str, list[Path]]) -> dict[str, Path]:
    return {role: files[0] for role, files in roles.items()}
