"""Weights and checkpoints that a kill or a full disk leaves whole: written aside, brought to the disk, then renamed.

A file under its final name is the old one or the new one. Beside ``NAME.pt`` stands ``NAME.pt.sha256`` with the hash it
has, or, for the moment of a change, with both.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.handlers.checkpoint import BaseSaveHandler

from scripts.faults import TrainingError

PATTERN = re.compile(r"checkpoint_(\d+)\.pt")
RUN, LOCK = "run.json", ".lock"
_HELD = "{}: another training runs there. Wait for it, or pass another --ckpt_dir"


def write_durably(path: Path, data: bytes) -> None:
    """Put data under a name, whole and on the disk, or leave what is there.

    Args:
        path: its folder exists.
        data: the whole content.

    Raises:
        TrainingError: the disk refuses; says what to do.
    """
    # A name of its own for each process that writes.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: cannot be written ({error.strerror or error}), what was there before stays. "
            "Free space on the disk or mend the folder's permissions, then go on with --resume True"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def proof_of(path: Path) -> Path:
    """The file that holds the hash of another."""
    return path.with_name(path.name + ".sha256")


def write_with_proof(path: Path, data: bytes) -> None:
    """``write_durably``, and the SHA-256 beside it; for the moment of the change that of the old file stands there too.

    Args:
        path: its folder exists.
        data: the whole content.

    Raises:
        TrainingError: the disk refuses.
    """
    new = hashlib.sha256(data).hexdigest()
    old = [hashlib.sha256(path.read_bytes()).hexdigest()] if path.is_file() else []
    # The hash first: a file under its final name is never without the one it has.
    write_durably(proof_of(path), "\n".join([new, *old]).encode())
    write_durably(path, data)
    if old:
        write_durably(proof_of(path), new.encode())


class DurableSaver(BaseSaveHandler):
    """ignite's ``DiskSaver`` with ``write_durably`` and a hash beside each file; the first process writes.

    Args:
        dirname: folder, made where it is missing.
    """

    def __init__(self, dirname: str | os.PathLike[str]) -> None:
        self.dirname = Path(dirname)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write one.

        Raises:
            TrainingError: the disk refuses.
        """
        del metadata
        if idist.get_rank():
            return
        self.dirname.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_with_proof(self.dirname / filename, buffer.getvalue())

    def remove(self, filename: str) -> None:
        """Remove one and its hash."""
        if not idist.get_rank():
            for path in (self.dirname / filename, proof_of(self.dirname / filename)):
                path.unlink(missing_ok=True)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints of a training that has not ended, the newest first."""
    found = [
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint_*.pt")
        if (match := PATTERN.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: str | os.PathLike[str], device: torch.device | str) -> dict[str, Any]:
    """The newest checkpoint that is whole; of a damaged one it is said, and the one before is taken.

    Args:
        folder: of the training.
        device: where its tensors go.

    Raises:
        TrainingError: none is whole.
    """
    faults = []
    for path in checkpoints_in(folder):
        fault, state = _load(path, device)
        if state is not None:
            for before in faults:
                logging.getLogger("train").warning("%s; going on from %s", before, path.name)
            return state
        faults.append(fault)
    raise TrainingError(f"nothing to resume, every checkpoint is damaged: {'; '.join(faults)}")


def _load(path: Path, device: torch.device | str) -> tuple[str, dict[str, Any] | None]:
    try:
        data = path.read_bytes()
        known = proof_of(path).read_text().split()
    except OSError as error:
        return f"{path.name}: cannot be read, or has no hash beside it ({error.strerror})", None
    if hashlib.sha256(data).hexdigest() not in known:
        return f"{path.name}: damaged (its SHA-256 is not the one beside it)", None
    return "", torch.load(io.BytesIO(data), map_location=device, weights_only=True)


BEGAN = "checkpoint.json"
_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s'\"/]+/)+")


def began(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was recorded when the training of a folder began.

    Args:
        folder: of the training.

    Raises:
        TrainingError: no such record, or an unreadable one.
    """
    path = Path(folder, BEGAN)
    try:
        record = json.loads(path.read_bytes())
        dict(record["config"]), dict(record["versions"]), record["manifest_sha256"], record["processes"], record["amp"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: no readable record of how this training began ({type(error).__name__}). Restore it; without it, "
            "delete checkpoint* there and begin again"
        ) from error
    return dict(record)


def as_text(content: Any) -> str:
    """JSON of a record, of paths of this machine the last part alone.

    Args:
        content: of the record; what JSON does not know is written as text.
    """
    return json.dumps(_without_folders(json.loads(json.dumps(content, default=str))), indent=2)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute():
        return Path(value).name
    return _FOLDERS.sub(lambda match: "" if Path(match[0]).is_dir() else match[0], value)


def refuse_held(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder in which another process trains, before anything is said of its checkpoints.

    Args:
        folder: of the training; looked at, and left as it is.

    Raises:
        TrainingError: another process trains there.
    """
    path = Path(folder, LOCK)
    if sys.platform == "win32" or idist.get_rank() or not path.is_file():
        return
    import fcntl  # noqa: PLC0415  # not there on Windows

    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise TrainingError(_HELD.format(folder)) from error
        except OSError:  # a file system without locks
            pass


class Run:
    """A training's folder: one training at a time, and a ``run.json`` that says how far it came.

    ``status`` there is ``running`` from the first step and ``completed`` once all else is written; a folder that says
    running while nothing runs holds a training that was stopped.

    Args:
        folder: of the training, made where it is missing.

    Raises:
        TrainingError: another process trains there, or the disk refuses.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lock: int | None = None
        if idist.get_rank():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        for path in self.folder.glob(".*.tmp"):  # of a training that was killed
            path.unlink(missing_ok=True)
        # However it ends; a kill leaves the file, which locks nothing.
        atexit.register(self.release)

    def _hold(self) -> None:
        """Lock the folder until this process ends, however it ends; without effect where there are no locks.

        The lock is the process's: after an interrupt in a notebook the same process goes on.
        """
        if sys.platform == "win32":
            return
        import fcntl  # noqa: PLC0415  # not there on Windows

        while self._lock is None:
            handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                os.close(handle)
                raise TrainingError(_HELD.format(self.folder)) from error
            except OSError:  # a file system without locks
                pass
            try:
                same = os.fstat(handle).st_ino == (self.folder / LOCK).stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                self._lock = handle
            else:  # whoever held it has just removed it
                os.close(handle)

    def says(self, status: str, **facts: Any) -> None:
        """Write ``run.json``.

        Args:
            status: ``running`` or ``completed``.
            facts: what else is known of it, JSON.

        Raises:
            TrainingError: the disk refuses.
        """
        if not idist.get_rank():
            write_durably(self.folder / RUN, json.dumps({"status": status, **facts}, indent=2).encode())

    def release(self) -> None:
        """Let others train there; the file of the lock goes too."""
        if self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
