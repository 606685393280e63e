"""Files as such: every file below a folder listed once, hashes, and writes that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.errors import PipelineError
from pipeline.slices import is_junk_folder, skip_reason

MAX_FILE_BYTES = 256 * 2**20
"""A slice of 4096 x 4096 RGB pixels takes 48 MiB uncompressed; far larger files are refused unread."""


WRITING = ".writing-"
"""How names of files begin that are not finished."""


@dataclass
class Listing:
    """Every file below a folder, each in exactly one of ``slices``, ``skipped`` and ``faults``.

    Args:
        stamps: path -> (size in bytes, mtime in ns), of all files; links by themselves, unreadable folders as (0, 0).
        slices: TIFF paths, sorted.
        skipped: path -> reason.
        faults: path -> message.
    """

    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    slices: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def list_files(root: Path) -> Listing:
    """List all files below ``root`` without opening or following any, in a fixed order.

    Args:
        root: a folder, or a link to one.

    Raises:
        PipelineError: ``root`` is no folder.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise PipelineError(f"{root}: {found} (expected the folder with the slices). Check the path.")
    real_root = os.path.realpath(root)
    listing = Listing()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            subject = folder or "."
            listing.stamps[subject] = (0, 0)
            _refuse_or_skip(
                listing, f"{subject}/x", subject, f"the folder cannot be read ({error.strerror}). Mend its permissions."
            )
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                _enter(listing, path, entry, real_root)
    listing.slices.sort()
    return listing


def counts_line(counts: Mapping[str, int]) -> str:
    """The invariant of every run in one line."""
    return "files: {found} found = {used} used + {skipped} skipped + {refused} refused".format(**counts)


def _refuse_or_skip(listing: Listing, judged: str, path: str, fault: str) -> None:
    """Enter a fault, unless ``judged`` lies in a junk folder, where nothing is looked at."""
    if any(is_junk_folder(part) for part in PurePosixPath(judged).parts[:-1]):
        listing.skipped[path] = "inside a hidden or __MACOSX folder"
    else:
        listing.faults[path] = fault


def _enter(listing: Listing, path: str, entry: os.DirEntry[str], real_root: str) -> None:
    """Put one file, link or special file where it belongs."""
    reason = skip_reason(PurePosixPath(path))
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        listing.stamps[path] = (0, 0)
        _refuse_or_skip(listing, path, path, f"cannot be examined ({error.strerror}). Mend its permissions.")
        return
    listing.stamps[path] = (status.st_size, status.st_mtime_ns)
    if reason and reason != "not a slice":
        listing.skipped[path] = reason
    elif entry.is_symlink():
        fault = _link_fault(entry.path, real_root)
        if fault:
            listing.faults[path] = fault
        else:
            listing.skipped[path] = "link to a file or folder that is counted itself"
    elif not stat.S_ISREG(status.st_mode):
        listing.faults[path] = "is a pipe, socket or device, not a file (not opened). Move it out of the folder."
    elif reason:
        listing.skipped[path] = reason
    else:
        listing.slices.append(path)


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


def content_of(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of no more than a size: others are not opened.

    Args:
        path: of the file.
        most_bytes: at most.

    Raises:
        OSError: missing, unreadable, too large, or a folder, pipe, socket or device.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no file, but a folder, pipe, socket or device", str(path))
    if status.st_size > most_bytes:
        raise OSError(errno.EINVAL, f"{status.st_size} bytes, at most {most_bytes} are read", str(path))
    return path.read_bytes()


def read_bytes(path: Path) -> bytes:
    """The content of a slice file.

    Raises:
        PipelineError: unreadable, or larger than ``MAX_FILE_BYTES``.
    """
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


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of ``data``, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, lower-case hexadecimal.

    Raises:
        OSError: the file is missing or unreadable.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, mtime in ns) of a file, to see cheaply that it has not been touched.

    Raises:
        OSError: the file is missing.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file so that under its name stands the old content or the new, whole, at any moment.

    Args:
        path: its folder is made where it is missing.
        data: the whole content.
        mode: permissions, by default those of any new file.

    Raises:
        PipelineError: the disk refuses (full, read-only, no permission); the old file stays.
    """
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=WRITING, suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is None:
                umask = os.umask(0)
                os.umask(umask)
                mode = 0o666 & ~umask  # mkstemp gives 0600, a plain open would not
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_all(staged: Mapping[Path, Path], aside: Path) -> None:
    """Put finished files under their names: all of them, or none where the disk refuses in between.

    Args:
        staged: finished file -> its name, on the same disk; the order is kept.
        aside: folder for what they replace meanwhile, made and removed again.

    Raises:
        PipelineError: the disk refuses; what was there before is there again.
    """
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (source, target) in enumerate(staged.items()):
            with writing_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                before = aside / str(number) if target.exists() else None
                if before:
                    link_or_copy(target, before)
                done.append((target, before))
                source.replace(target)
    except BaseException:
        for target, before in reversed(done):
            with contextlib.suppress(OSError):
                if before:
                    before.replace(target)
                else:
                    target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for folder in {target.parent for target in staged.values()}:
        _sync_folder(folder)


def proof_of(path: Path) -> Path:
    """The file that holds another's SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def write_with_proof(path: Path, data: bytes) -> None:
    """``write_atomically``, and its SHA-256 beside it; there, for the moment of the change, the old one stands too.

    Args:
        path: its folder is made where it is missing.
        data: the whole content.

    Raises:
        PipelineError: the disk refuses.
    """
    new = sha256_bytes(data)
    with writing_errors(path):
        old = [sha256_file(path)] if path.is_file() else []
    write_atomically(proof_of(path), "\n".join([new, *old]).encode())
    write_atomically(path, data)
    write_atomically(proof_of(path), new.encode())


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file under a second name, without its bytes where the disk can: the files here are replaced, never changed.

    Args:
        source: a file.
        target: replaced where it is another; its folder is made where it is missing.

    Raises:
        PipelineError: the disk refuses.
    """
    with writing_errors(target):
        if target.exists() and target.samefile(source):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{WRITING}{target.name}.tmp")
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:  # another disk, or one without links
            write_atomically(target, source.read_bytes())
        else:
            beside.replace(target)


@contextlib.contextmanager
def locked(folder: Path, parts: Sequence[str] = ()) -> Iterator[None]:
    """Keep a second run out of the same folder meanwhile; without effect where the system has no ``flock``.

    The lock ends with the process, however it ends, and leaves no file. What killed runs have not finished writing is
    removed.

    Args:
        folder: made where it is missing; removed again where nothing came into it.
        parts: folders in it that such a run writes into as well.

    Raises:
        PipelineError: another run holds the folder.
    """
    made = not folder.exists()
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder):
            for path in [
                *folder.glob(f"{WRITING}*"),
                *(p for part in parts for p in (folder / part).rglob(f"{WRITING}*")),
            ]:
                path.unlink(missing_ok=True)
            yield
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """``locked`` of a folder that is there, in which nothing is removed."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with writing_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(
                f"{folder}: another run writes there. Wait for it to end, or choose another folder."
            ) from error
        except OSError:  # a network file system without locks: go on as without flock
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``PipelineError`` that names ``path``.

    Raises:
        PipelineError: in place of the ``OSError``.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PipelineError(
            f"{path}: a file stands where a folder is needed ({error.strerror}). Choose another folder, or move it."
        ) from error
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Free space on the disk or mend the folder's permissions, then run again."
        ) from error
