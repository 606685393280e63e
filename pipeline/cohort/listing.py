"""List every file in a folder once, without opening files or following links."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.cohort.names import NOT_A_SLICE, skip_reason
from pipeline.errors import PipelineError
from pipeline.files import BUILT_MARK, FIGURES, FINISHED, MAP_FOLDER, MASK_FOLDER, RESULT_SUFFIXES, SUMMARY_NAME
from pipeline.scripts.files import content_of, sha256_bytes, sha256_file
from pipeline.scripts.manifest import VOLUMES

MAX_FILE_BYTES = 256 * 2**20
"""Largest size of a slice file. A slice of 4096 x 4096 RGB pixels takes 48 MiB; larger files are refused unread."""


LINK = "link to a file or folder that is already counted"
RESULT = "a result of predict or evaluate"


@dataclass(frozen=True)
class Listing:
    """Every file in a folder, each in exactly one of ``slices``, ``skipped`` and ``faults``.

    Args:
        stamps: Size in bytes and modification time in ns of every file, by path; (0, 0) if they cannot be read.
        slices: Paths of the files that may be slices, sorted.
        skipped: Why a file is not used, by path.
        faults: Why a file cannot be used, by path.
    """

    stamps: Mapping[str, tuple[int, int]]
    slices: tuple[str, ...]
    skipped: Mapping[str, str]
    faults: Mapping[str, str]


def list_files(root: Path) -> Listing:
    """All files in a folder and its subfolders, in a fixed order.

    Raises:
        PipelineError: The folder does not exist.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise PipelineError(f"{root}: {found} (expected a folder with slices or volumes). Check the path.")
    real_root = Path(os.path.realpath(root))
    stamps: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    faults: dict[str, str] = {}
    folders: list[tuple[str, tuple[str, ...]]] = [("", ())]  # with the folders above that hold results
    while folders:
        folder, results = folders.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            path, entries = folder or ".", []
            stamps[path] = (0, 0)
            junk = skip_reason(PurePosixPath(folder, "x.tif"))
            fault = f"the folder cannot be read ({error.strerror}). Correct its permissions."
            (skipped if junk else faults)[path] = junk or fault
        if {FINISHED, BUILT_MARK} & {entry.name for entry in entries}:
            results = (*results, folder)
        for entry in entries:
            path = str(PurePosixPath(folder, entry.name))
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, results))
                continue
            reason = skip_reason(PurePosixPath(path))
            stamps[path], fault = _examined(entry, real_root)
            if any(_is_result(root / place, PurePosixPath(path).relative_to(place)) for place in results):
                skipped[path] = RESULT
            elif reason and reason != NOT_A_SLICE:
                skipped[path] = reason
            elif fault:
                faults[path] = fault
            elif entry.is_symlink():
                skipped[path] = LINK
            elif reason:
                skipped[path] = reason
    slices = sorted(stamps.keys() - skipped.keys() - faults.keys())
    return Listing(stamps, tuple(slices), skipped, faults)


def _is_result(place: Path, path: PurePosixPath) -> bool:
    """Whether ``predict`` or ``evaluate`` has written a file into its folder ``place``, where others may lie too."""
    top, *below = path.parts
    if not below:
        return top.endswith(RESULT_SUFFIXES)
    if top in (MASK_FOLDER, MAP_FOLDER):
        return (place / SUMMARY_NAME).is_file()
    if top == VOLUMES:
        return (place / SUMMARY_NAME).is_file() or (place / BUILT_MARK).is_file()
    return top == FIGURES


def _examined(entry: os.DirEntry[str], real_root: Path) -> tuple[tuple[int, int], str]:
    """Size and modification time of a directory entry, and why it cannot be used; empty if it can."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return (0, 0), f"cannot be examined ({error.strerror}). Correct its permissions."
    fault = ""
    if stat.S_ISLNK(status.st_mode):
        fault = _link_fault(Path(entry.path), real_root)
    elif not stat.S_ISREG(status.st_mode):
        fault = "is a pipe, socket or device, not a file (not opened). Move it out of the folder."
    return (status.st_size, status.st_mtime_ns), fault


def _link_fault(link: Path, real_root: Path) -> str:
    """Why a symbolic link is refused; empty if its target lies inside the source folder and is counted."""
    try:
        target = Path(os.path.realpath(link, strict=True))
    except FileNotFoundError:
        return "symbolic link to nothing. Remove the link or restore its target."
    except OSError as error:
        return f"symbolic link that cannot be followed ({error.strerror}). Remove the link."
    if not target.is_relative_to(real_root):
        return "symbolic link out of the source folder (not followed). Replace it with the file itself."
    below = "any_1.tif" if target.is_dir() else ""
    if below and Path(os.path.realpath(link.parent)).is_relative_to(target):
        return "symbolic link loop: it leads to a folder that contains it. Remove the link."
    reason = skip_reason(PurePosixPath(target.relative_to(real_root), below))
    if reason and reason != skip_reason(PurePosixPath(link.name, below)):
        return f"symbolic link to a file that is not counted ({reason}). Replace it with the file itself."
    return ""


def counts_line(counts: Mapping[str, int]) -> str:
    """One line with the numbers of found, used, skipped and refused files."""
    return "files: {found} found = {used} used + {skipped} skipped + {refused} refused".format(**counts)


def read_bytes(path: Path) -> bytes:
    """The content of a slice file, up to ``MAX_FILE_BYTES``.

    Raises:
        PipelineError: The file cannot be read.
    """
    try:
        return content_of(path, MAX_FILE_BYTES)
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror or error}). Replace the file, correct its permissions, or check the disk."
        ) from error


def hash_of(path: Path) -> str:
    """The SHA-256 of a source file. Slices have the size limit of ``read_bytes``; volumes have none.

    Raises:
        PipelineError: The file cannot be read.
    """
    if not skip_reason(PurePosixPath(path.name)):
        return sha256_bytes(read_bytes(path))
    try:
        return sha256_file(path)
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror or error}). Replace it, or correct its permissions."
        ) from error


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file. They show cheaply that a file has not changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
