"""Finds the MRI sequence in a file's name: BraTS, BIDS and plain names."""

from __future__ import annotations

import re

_BIDS = re.compile(r"(?P<case>sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?)_(?P<rest>.*_)?(?P<name>flair|t1w)", re.IGNORECASE)
_PLAIN = re.compile(
    r"(?:(?P<case>.+?)[-_. ])?(?P<name>t2[-_]?flair|t2f|flair|t1n|t1c|t1ce|t1gd|t1[-_]?post|t1[-_]?pre|t1w|t1)",
    re.IGNORECASE,
)
_ROLES = {"t2f": "flair", "flair": "flair", "t2flair": "flair", "t1n": "pre", "t1w": "pre", "t1": "pre", "t1pre": "pre"}
"""Every other name that ``_PLAIN`` finds is post-contrast T1."""
_T1_FLAIR = re.compile(r"(?<![a-z0-9])t1[a-z]*[-_. ]*(?:t2[-_. ]?)?flair|flair[-_. ]*t1", re.IGNORECASE)
_POST = r"[a-z0-9]*post(?!proc|erior|op(?![a-z0-9]*(?:gd|gad|contrast)))[a-z0-9]*"
_CONTRAST = re.compile(rf"_(?:ce-|(?:acq|desc|rec)-(?:gd|gad[a-z0-9]*|ce|contrast|{_POST})(?:_|\Z))", re.IGNORECASE)
"""Entities in BIDS names of images with contrast agent: ``ce-gd``, and others in use, such as ``acq-postcontrast``."""
_SPACE = re.compile(r"_space-[a-z0-9]+", re.IGNORECASE)


def sequence_of(stem: str) -> tuple[str, str] | None:
    """Patient and sequence (``pre``, ``flair`` or ``post``) from a file's name.

    Args:
        stem: The file's name without its suffix.

    Returns:
        Patient and sequence; the patient is empty where the name holds only the sequence. None where the name holds
        none of these sequences.

    Examples:
        >>> sequence_of("sub-01_ce-gd_T1w")
        ('sub-01', 'post')
    """
    if is_t1_flair(stem):
        return None
    if found := _BIDS.fullmatch(stem):
        contrast = _CONTRAST.search(f"_{found['rest'] or ''}")
        return found["case"], "flair" if found["name"].lower() == "flair" else "post" if contrast else "pre"
    if found := _PLAIN.fullmatch(stem):
        return found["case"] or "", _ROLES.get(re.sub("[-_]", "", found["name"].lower()), "post")
    return None


def is_t1_flair(stem: str) -> bool:
    """Whether a name has T1 beside FLAIR. A T1 FLAIR image is neither FLAIR nor a T1 image of these sequences."""
    return bool(_T1_FLAIR.search(_SPACE.sub("", stem)))
