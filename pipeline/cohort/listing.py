"""Every file below a folder listed once, without opening or following any."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.cohort.names import is_junk_folder, skip_reason
from pipeline.errors import PipelineError

MAX_FILE_BYTES = 256 * 2**20
"""A slice of 4096 x 4096 RGB pixels takes 48 MiB uncompressed; far larger files are refused unread."""


@dataclass(frozen=True)
class Listing:
    """Every file below a folder, each in exactly one of ``slices``, ``skipped`` and ``faults``.

    Args:
        stamps: Path of every file -> (size in bytes, mtime in ns); (0, 0) for folders that cannot be read.
        slices: Paths of TIFF files, sorted.
        skipped: Path -> why the file is not used.
        faults: Path -> why the file cannot be used.
    """

    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


def list_files(root: Path) -> Listing:
    """List all files below ``root`` without opening or following any, in a fixed order."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise PipelineError(f"{root}: {found} (expected the folder with the slices). Check the path.")
    real_root = os.path.realpath(root)
    stamps: dict[str, tuple[int, int]] = {}
    fates: dict[str, tuple[str, str]] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            subject, fault = folder or ".", f"the folder cannot be read ({error.strerror}). Mend its permissions."
            stamps[subject], fates[subject] = (0, 0), _fault_or_junk(f"{subject}/x", fault)
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                stamps[path], fates[path] = _stamp_and_fate(path, entry, real_root)
    return Listing(
        stamps=stamps,
        slices=tuple(sorted(path for path, (fate, _) in fates.items() if fate == "slice")),
        skipped={path: reason for path, (fate, reason) in fates.items() if fate == "skipped"},
        faults={path: reason for path, (fate, reason) in fates.items() if fate == "fault"},
    )


def counts_line(counts: Mapping[str, int]) -> str:
    """The invariant of every run in one line."""
    return "files: {found} found = {used} used + {skipped} skipped + {refused} refused".format(**counts)


def _fault_or_junk(judged: str, fault: str) -> tuple[str, str]:
    """A fault, unless ``judged`` lies in a junk folder, where nothing is looked at."""
    if any(is_junk_folder(part) for part in PurePosixPath(judged).parts[:-1]):
        return "skipped", "inside a hidden or __MACOSX folder"
    return "fault", fault


def _stamp_and_fate(path: str, entry: os.DirEntry[str], real_root: str) -> tuple[tuple[int, int], tuple[str, str]]:
    """(size, mtime) of a file, link or special file; and whether it is a slice, skipped or a fault, and why."""
    reason = skip_reason(PurePosixPath(path))
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return (0, 0), _fault_or_junk(path, f"cannot be examined ({error.strerror}). Mend its permissions.")
    fate = ("slice", "")
    if reason and reason != "not a slice":
        fate = ("skipped", reason)
    elif entry.is_symlink():
        fault = _link_fault(entry.path, real_root)
        fate = ("fault", fault) if fault else ("skipped", "link to a file or folder that is counted itself")
    elif not stat.S_ISREG(status.st_mode):
        fate = ("fault", "is a pipe, socket or device, not a file (not opened). Move it out of the folder.")
    elif reason:
        fate = ("skipped", reason)
    return (status.st_size, status.st_mtime_ns), fate


def _link_fault(link: str, real_root: str) -> str:
    """Why a symbolic link is refused, empty for one whose target lies inside the source folder."""
    try:
        target = os.path.realpath(link, strict=True)
    except FileNotFoundError:
        return "symbolic link to nothing. Remove the link or restore its target."
    except OSError as error:
        return f"symbolic link that cannot be followed ({error.strerror}). Remove the link."
    if target != real_root and not target.startswith(real_root.rstrip(os.sep) + os.sep):
        return "symbolic link out of the source folder (not followed). Replace it by the file itself."
    if os.path.realpath(Path(link).parent).startswith(target.rstrip(os.sep)) and Path(target).is_dir():
        holder = Path(os.path.realpath(Path(link).parent))
        if holder == Path(target) or Path(target) in holder.parents:
            return "symbolic link loop: it leads to a folder that holds it. Remove the link."
    name, inside = PurePosixPath(Path(link).name), PurePosixPath(Path(target).relative_to(real_root).as_posix())
    if Path(target).is_dir():
        name, inside = name / "any_1.tif", inside / "any_1.tif"
    reason = skip_reason(inside)
    if reason and not skip_reason(name):
        return f"symbolic link to what is not counted itself ({reason}). Replace it by the file itself."
    return ""


def read_bytes(path: Path) -> bytes:
    """The content of a slice file."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise PipelineError(
                f"{size} bytes, more than any slice needs (expected at most {MAX_FILE_BYTES}). Replace the file."
            )
        return path.read_bytes()
    except OSError as error:
        raise PipelineError(
            f"cannot be read ({error.strerror or error}). Mend the file's permissions or the disk."
        ) from error


def stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, mtime in ns) of a file, to see cheaply that it has not been touched."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
