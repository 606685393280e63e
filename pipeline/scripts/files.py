"""Hashes, durable writes, checksums beside files, and locks on folders.

A file under its final name is always complete: the old one or the new one. ``NAME.sha256`` beside a file holds its
hash. During a change, it holds the hashes of the old and the new file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from .faults import PipelineError, WritingError

WRITING = ".writing-"
"""First characters of the names of unfinished files."""


def content_of(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of limited size.

    Args:
        path: The file.
        max_bytes: The largest size that is read, in bytes.

    Raises:
        OSError: The file is missing or too large, or it is a folder, pipe or device, which is not opened.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file, but a folder, pipe, socket or device", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EINVAL, f"{status.st_size} bytes, at most {max_bytes} are read", str(path))
    return path.read_bytes()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of ``data``, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file, and make its folder where it is missing. The file has the old or the new content at any moment.

    Args:
        path: The file.
        data: The new content.
        mode: The new file's permissions before the umask.

    Raises:
        PipelineError: The file cannot be written.
    """
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{WRITING}{uuid.uuid4().hex}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk where the system can, so that a rename survives a power failure."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checksum_path(path: Path) -> Path:
    """Path of the file that holds another file's SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def write_with_checksum(path: Path, data: bytes) -> None:
    """Write a file as ``write_durably`` does, and its SHA-256 beside it."""
    new = sha256_bytes(data)
    with writing_errors(path):
        old = [sha256_file(path)] if path.is_file() else []
    # The hash goes first, so that a file never lacks its own.
    write_durably(checksum_path(path), "\n".join([new, *old]).encode())
    write_durably(path, data)
    if old:
        write_durably(checksum_path(path), new.encode())


def matches_checksum(path: Path, sha256: str) -> bool:
    """Whether a hash fits the checksum beside a file; True where there is no checksum.

    Args:
        path: The file.
        sha256: The SHA-256 of the file's content.

    Raises:
        PipelineError: The checksum cannot be read.
    """
    try:
        text = checksum_path(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise PipelineError(
            f"{checksum_path(path)}: cannot be read ({error.strerror}). Change its permissions."
        ) from error
    return sha256 in text.split()


@contextlib.contextmanager
def locked(folder: Path, parts: Sequence[str] = ()) -> Iterator[None]:
    """Lock a folder against other runs for the length of the block, as ``held`` does.

    A missing folder is made, and removed again if it stays empty. Unfinished files of killed runs are removed.

    Args:
        folder: The folder.
        parts: Names of folders within it, from which unfinished files are also removed.
    """
    made = not folder.exists()
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder):
            within = (path for part in parts for path in (folder / part).rglob(f"{WRITING}*"))
            for path in [*folder.glob(f"{WRITING}*"), *within]:
                path.unlink(missing_ok=True)
            yield
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder until the block or the process ends. Systems without ``flock`` have no lock.

    Raises:
        PipelineError: Another run holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl  # missing on Windows

    with writing_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    _HELD.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(
                f"{folder}: another run writes there. Wait until it ends, or choose another folder."
            ) from error
        except OSError:  # a network file system without locks: continue as without flock
            pass
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


_HELD: set[int] = set()
"""Handles of the folders that this process has locked."""


def _release_in_child() -> None:
    """Close the locks in a forked process, which would keep them after its parent is killed."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Replace an ``OSError`` of the block by a ``PipelineError`` that names a path.

    Args:
        path: The file or folder that the block writes.

    Raises:
        WritingError: The file or folder cannot be written.
        PipelineError: There is a file where a folder is needed.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PipelineError(
            f"{path}: there is a file where a folder is needed ({error.strerror}). Choose another folder, or move "
            "the file."
        ) from error
    except OSError as error:
        raise WritingError(
            f"{path}: cannot be written ({error.strerror or error}); earlier content is kept. "
            "Free space on the disk or change the folder's permissions, then run again."
        ) from error
