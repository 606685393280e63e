"""Checkpoints that a kill or a full disk leaves whole, and the newest of them."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.handlers.checkpoint import BaseSaveHandler

from .faults import PipelineError
from .files import checksum_path, matches_checksum, sha256_bytes, write_with_checksum

_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.pt")


class DurableSaver(BaseSaveHandler):
    """ignite's ``DiskSaver`` with durable writes and a checksum beside each file; the first process writes.

    Args:
        dirname: The folder, made where it is missing.
    """

    def __init__(self, dirname: str | os.PathLike[str]) -> None:
        self.dirname = Path(dirname)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write one.

        Raises:
            PipelineError: The disk refuses.
        """
        del metadata
        if idist.get_rank():
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_with_checksum(self.dirname / filename, buffer.getvalue())

    def remove(self, filename: str) -> None:
        """Remove one and its hash."""
        if not idist.get_rank():
            for path in (self.dirname / filename, checksum_path(self.dirname / filename)):
                path.unlink(missing_ok=True)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints of a training that has not ended, the newest first."""
    found = [
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint_*.pt")
        if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: str | os.PathLike[str], device: torch.device | str) -> dict[str, Any]:
    """The newest checkpoint that is whole; a damaged one is reported, and the one before is taken.

    Args:
        folder: The training's folder.
        device: The device for its tensors.

    Raises:
        PipelineError: None is whole.
    """
    faults: list[str] = []
    for path in checkpoints_in(folder):
        fault, state = _load(path, device)
        if state is not None:
            for before in faults:
                logging.getLogger("train").warning("%s; going on from %s", before, path.name)
            return state
        faults.append(fault)
    raise PipelineError(f"nothing to resume, every checkpoint is damaged: {'; '.join(faults)}")


def _load(path: Path, device: torch.device | str) -> tuple[str, dict[str, Any] | None]:
    """A fault, or the content of a checkpoint."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"{path.name}: cannot be read ({error.strerror})", None
    if not checksum_path(path).is_file():
        return f"{path.name}: has no checksum beside it", None
    if not matches_checksum(path, sha256_bytes(data)):
        return f"{path.name}: damaged (its SHA-256 is not the one beside it)", None
    return "", torch.load(io.BytesIO(data), map_location=device, weights_only=True)
