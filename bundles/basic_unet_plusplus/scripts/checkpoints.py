"""Checkpoints that survive a kill or a full disk, and the newest of them."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.handlers.checkpoint import BaseSaveHandler

from .faults import PipelineError
from .files import checksum_path, matches_checksum, sha256_bytes, write_with_checksum


class DurableSaver(BaseSaveHandler):
    """ignite's ``DiskSaver`` with durable writes and a checksum beside each file. Only the first process writes."""

    def __init__(self, dirname: str | os.PathLike[str]) -> None:
        self.dirname = Path(dirname)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint and its checksum."""
        del metadata
        if not idist.get_rank():
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            write_with_checksum(self.dirname / filename, buffer.getvalue())

    def remove(self, filename: str) -> None:
        """Remove a checkpoint and its checksum."""
        if not idist.get_rank():
            for path in (self.dirname / filename, checksum_path(self.dirname / filename)):
                path.unlink(missing_ok=True)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of the checkpoints of an unfinished training, the newest first."""
    epochs = {path: path.stem.removeprefix("checkpoint_") for path in Path(folder).glob("checkpoint_*.pt")}
    found = [path for path, epoch in epochs.items() if epoch.isdecimal()]
    return sorted(found, key=lambda path: int(epochs[path]), reverse=True)


def newest(folder: str | os.PathLike[str], device: torch.device | str) -> dict[str, Any]:
    """The content of the newest intact checkpoint. A warning names each damaged one that is skipped.

    Args:
        folder: The training's folder.
        device: The device to which the tensors are loaded.

    Raises:
        PipelineError: Every checkpoint is damaged or cannot be read.
    """
    faults = []
    for path in checkpoints_in(folder):
        try:
            data = path.read_bytes()
        except OSError as error:
            faults.append(f"{path.name}: cannot be read ({error.strerror})")
            continue
        if checksum_path(path).is_file() and matches_checksum(path, sha256_bytes(data)):
            for fault in faults:
                logging.getLogger("train").warning("%s; the training continues from %s", fault, path.name)
            return dict(torch.load(io.BytesIO(data), map_location=device, weights_only=True))
        faults.append(f"{path.name}: damaged (its SHA-256 is not in {path.name}.sha256 beside it)")
    raise PipelineError(
        f"{folder}: nothing to resume, every checkpoint is damaged: {'; '.join(faults)}. Restore one, or delete "
        "them and start again without --resume."
    )
