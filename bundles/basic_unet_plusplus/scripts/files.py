"""Files as such: hashes, writes that are whole or not there, checksums beside files, and folders for one run at a time.

A file under its final name is the old one or the new one. ``NAME.sha256`` beside a file holds its hash or, for the
moment of a change, the hashes of both.
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

from .faults import PipelineError

WRITING = ".writing-"
"""First characters of the names of files that are not finished."""


def content_of(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of limited size. An ``OSError`` for any other; pipes and devices are not opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no file, but a folder, pipe, socket or device", str(path))
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
    """Write a file, and its folder where that is missing. The name holds the old or the new content at any moment.

    A disk that refuses is a ``PipelineError``. ``mode`` is the new file's permissions before the umask.
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
    """Bring a folder's entries to the disk where the system can, so that a rename survives a loss of power."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checksum_path(path: Path) -> Path:
    """The file that holds another file's SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def write_with_checksum(path: Path, data: bytes) -> None:
    """``write_durably``, and the SHA-256 beside the file."""
    new = sha256_bytes(data)
    with writing_errors(path):
        old = [sha256_file(path)] if path.is_file() else []
    # The hash first: a file under its final name is never without its own.
    write_durably(checksum_path(path), "\n".join([new, *old]).encode())
    write_durably(path, data)
    if old:
        write_durably(checksum_path(path), new.encode())


def matches_checksum(path: Path, sha256: str) -> bool:
    """True unless a checksum stands beside a file and does not list the hash of the file's content."""
    try:
        text = checksum_path(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise PipelineError(
            f"{checksum_path(path)}: cannot be read ({error.strerror}). Mend its permissions."
        ) from error
    return sha256 in text.split()


@contextlib.contextmanager
def locked(folder: Path, parts: Sequence[str] = ()) -> Iterator[None]:
    """``held`` for a folder that may be missing: it is made, and removed again where nothing came into it.

    What killed runs have not finished writing is removed from it and from ``parts``, folders within it.
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
    """Lock a folder, or refuse where another run holds it. The lock ends with the process, and needs ``flock``."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # not there on Windows

    with writing_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
    _HELD.add(handle)
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
        _HELD.discard(handle)
        os.close(handle)


_HELD: set[int] = set()
"""Open folders by which this process holds locks."""


def _release_in_child() -> None:
    """A process that loads batches is a fork: it would hold the lock on when its parent is killed."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``PipelineError`` that names ``path``."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PipelineError(
            f"{path}: a file stands where a folder is needed ({error.strerror}). Choose another folder, or move it."
        ) from error
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be written ({error.strerror or error}), what was there before stays. "
            "Free space on the disk or mend the folder's permissions, then run again."
        ) from error
