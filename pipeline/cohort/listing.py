"""Every file below a folder listed once, without opening or following any."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.cohort.names import NOT_A_SLICE, skip_reason
from pipeline.errors import PipelineError
from pipeline.scripts.files import content_of, sha256_bytes, sha256_file

MAX_FILE_BYTES = 256 * 2**20
"""A slice of 4096 x 4096 RGB pixels takes 48 MiB uncompressed; far larger files are refused unread."""


LINK = "link to a file or folder that is counted itself"


@dataclass(frozen=True)
class Listing:
    """Every file below a folder, each in exactly one of ``slices``, ``skipped`` and ``faults``.

    Args:
        stamps: Path of every file -> (size in bytes, mtime in ns); (0, 0) for what cannot be examined.
        slices: Paths of TIFF files, sorted.
        skipped: Path -> why the file is not used.
        faults: Path -> why the file cannot be used.
    """

    stamps: Mapping[str, tuple[int, int]]
    slices: tuple[str, ...]
    skipped: Mapping[str, str]
    faults: Mapping[str, str]


def list_files(root: Path) -> Listing:
    """All files below ``root``, in a fixed order."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise PipelineError(f"{root}: {found} (expected the folder with the slices). Check the path.")
    real_root = Path(os.path.realpath(root))
    stamps: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    faults: dict[str, str] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            path, entries = folder or ".", []
            stamps[path] = (0, 0)
            junk = skip_reason(PurePosixPath(folder, "x.tif"))
            fault = f"the folder cannot be read ({error.strerror}). Mend its permissions."
            (skipped if junk else faults)[path] = junk or fault
        for entry in entries:
            path = str(PurePosixPath(folder, entry.name))
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
                continue
            reason = skip_reason(PurePosixPath(path))
            stamps[path], fault = _examined(entry, real_root)
            if reason and reason != NOT_A_SLICE:
                skipped[path] = reason
            elif fault:
                faults[path] = fault
            elif entry.is_symlink():
                skipped[path] = LINK
            elif reason:
                skipped[path] = reason
    slices = sorted(stamps.keys() - skipped.keys() - faults.keys())
    return Listing(stamps, tuple(slices), skipped, faults)


def _examined(entry: os.DirEntry[str], real_root: Path) -> tuple[tuple[int, int], str]:
    """(size, mtime) of a file, link or special file, and why it cannot be used; empty where it can."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return (0, 0), f"cannot be examined ({error.strerror}). Mend its permissions."
    fault = ""
    if stat.S_ISLNK(status.st_mode):
        fault = _link_fault(Path(entry.path), real_root)
    elif not stat.S_ISREG(status.st_mode):
        fault = "is a pipe, socket or device, not a file (not opened). Move it out of the folder."
    return (status.st_size, status.st_mtime_ns), fault


def _link_fault(link: Path, real_root: Path) -> str:
    """Why a symbolic link is refused, empty for one whose target lies inside the source folder."""
    try:
        target = Path(os.path.realpath(link, strict=True))
    except FileNotFoundError:
        return "symbolic link to nothing. Remove the link or restore its target."
    except OSError as error:
        return f"symbolic link that cannot be followed ({error.strerror}). Remove the link."
    if not target.is_relative_to(real_root):
        return "symbolic link out of the source folder (not followed). Replace it by the file itself."
    below = "any_1.tif" if target.is_dir() else ""
    if below and Path(os.path.realpath(link.parent)).is_relative_to(target):
        return "symbolic link loop: it leads to a folder that holds it. Remove the link."
    reason = skip_reason(PurePosixPath(target.relative_to(real_root), below))
    if reason and reason != skip_reason(PurePosixPath(link.name, below)):
        return f"symbolic link to what is not counted itself ({reason}). Replace it by the file itself."
    return ""


def counts_line(counts: Mapping[str, int]) -> str:
    """The invariant of every run in one line."""
    return "files: {found} found = {used} used + {skipped} skipped + {refused} refused".format(**counts)


def read_bytes(path: Path) -> bytes:
    """The content of a slice file."""
    try:
        return content_of(path, MAX_FILE_BYTES)
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror or error}). Replace the file, or mend its permissions or the disk."
        ) from error


def hash_of(path: Path) -> str:
    """SHA-256 of a source file, whatever the size of a volume; a TIFF as ``read_bytes`` reads it."""
    if not skip_reason(PurePosixPath(path.name)):
        return sha256_bytes(read_bytes(path))
    try:
        return sha256_file(path)
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror or error}). Replace it, or mend its permissions."
        ) from error


def stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, mtime in ns) of a file, to see cheaply that it has not been touched."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
