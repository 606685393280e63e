"""Volumes shared out among processes (torchrun, SLURM), and results of single volumes kept for a run that goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError
from pipeline.files import FINISHED
from pipeline.scripts.files import sha256_bytes, sha256_file, write_durably

Item = TypeVar("Item")
MAX_WAIT = timedelta(days=7)
"""How long a process that is done waits for the others."""


@dataclass(frozen=True)
class Share:
    """The part of this process: its number, from 0, and the number of all processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process."""
        return items[self.rank :: self.size]

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in every process; waits for all."""
        if self.size == 1:
            return list(items)
        import torch.distributed

        gathered: list[Any] = [None] * self.size
        try:
            torch.distributed.all_gather_object(gathered, list(items))
        except RuntimeError as error:
            raise PipelineError("another process of this run has ended, its message says why.") from error
        return [item for part in gathered for item in part]

    def check(self, check: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Check all items, each process its own; every process raises the fault of the first faulty one.

        Raises:
            PipelineError: What ``check`` raises.
        """
        faults: list[tuple[int, PipelineError]] = []
        for number, item in self.of([*enumerate(items)]):
            try:
                check(item)
            except PipelineError as error:
                faults.append((number, error))
                break
        if faults := self.gather(faults):
            raise min(faults, key=itemgetter(0))[1]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather([])


@contextmanager
def shared() -> Iterator[Share]:
    """This process's share, by the variables that torchrun sets; the whole where there are none.

    Raises:
        PipelineError: The variables name several processes that cannot be joined.

    Example:
        >>> with shared() as share:
        ...     list(share.of(["a", "b", "c"]))
        ['a', 'b', 'c']
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    import torch.distributed

    try:
        torch.distributed.init_process_group("gloo", timeout=MAX_WAIT)
    except (RuntimeError, ValueError) as error:
        raise PipelineError(
            f"{os.environ['WORLD_SIZE']} processes (WORLD_SIZE) cannot be joined: {error}. Start them with torchrun."
        ) from error
    try:
        yield Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()


def own_device(device: str | None) -> str | None:
    """The device of this process where none is asked for: with several processes on CUDA one GPU each, in turn."""
    import torch

    if device or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


class Finished:
    """Results of single volumes, each a file, so that a run that was stopped can go on.

    Args:
        folder: The folder of all results.
        settings: What the results depend on; results of other settings do not count. JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / FINISHED
        self.settings = sha256_bytes(json.dumps(settings, sort_keys=True).encode())

    def read(self, name: str, files: Sequence[Path]) -> dict[str, Any] | None:
        """The result of a volume; None where there is none of these settings and of these very files."""
        try:
            found = self._kept(name)
            if found["settings"] == self.settings and found["files"] == [sha256_file(path) for path in files]:
                return dict(found["result"])
        except (OSError, TypeError, KeyError):
            pass
        return None

    def is_of_other_settings(self, name: str) -> bool:
        """Whether there is a result of a volume, and of other settings."""
        found = self._kept(name)
        return bool(found.get("files")) and found.get("settings") != self.settings

    def begin(self, name: str) -> None:
        """Note that what is written of a volume from now on is no result yet, in case the run is killed meanwhile."""
        self._keep(name, {"settings": self.settings, "files": None})

    def is_begun(self, name: str) -> bool:
        """Whether what is there of a volume is of a run that was killed while it was written."""
        return self._kept(name).get("files", ()) is None

    def _kept(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / f"{name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def write(self, name: str, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keep the result of a volume, JSON, with the hashes of what it was made of and of what was written."""
        hashes = [sha256_file(path) for path in files]
        self._keep(name, {"settings": self.settings, "files": hashes, "result": result})

    def _keep(self, name: str, content: Mapping[str, Any]) -> None:
        write_durably(self.folder / f"{name}.json", json.dumps(content).encode())

    def clear(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.folder, ignore_errors=True)
