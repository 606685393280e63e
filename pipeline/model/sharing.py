"""Share volumes among processes (torchrun, SLURM), and keep each volume's result for a continued run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError
from pipeline.files import FINISHED
from pipeline.model.backends import TORCH
from pipeline.scripts.files import sha256_bytes, sha256_file, write_durably

Item = TypeVar("Item")
MAX_WAIT = timedelta(days=7)
"""How long a finished process waits for the others."""


@dataclass(frozen=True)
class Share:
    """The part of the work that belongs to this process.

    Args:
        rank: The number of this process, from 0.
        size: The number of all processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files that only one process writes."""
        return self.rank == 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this process works on."""
        return items[self.rank :: self.size]

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, joined. Every process gets them, after waiting for all others."""
        if self.size == 1:
            return list(items)
        import torch.distributed

        gathered: list[Any] = [None] * self.size
        try:
            torch.distributed.all_gather_object(gathered, list(items))
        except RuntimeError as error:
            raise PipelineError("another process of this run has ended. Read its message.") from error
        return [item for part in gathered for item in part]

    def check(self, check: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Check all items, each process its share. All processes raise the error of the first bad item.

        Args:
            check: A function that raises a ``PipelineError`` for a bad item.
            items: All items, the same in every process.

        Raises:
            PipelineError: An item is bad.
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
        """Wait until all processes reach this point."""
        self.gather([])


@contextmanager
def shared() -> Iterator[Share]:
    """The share of this process, from the variables that torchrun sets; without them, everything.

    Raises:
        PipelineError: The variables name several processes that cannot be joined.

    Examples:
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


def own_device(device: str | None, backend: str = TORCH) -> str | None:
    """The device that was asked for; without one, torchrun's processes get the GPUs in turn for PyTorch."""
    import torch

    if device or backend != TORCH or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


class Finished:
    """The results of single volumes, one file each, so that a stopped run can continue.

    Args:
        folder: The folder of results of the run.
        settings: All settings that the results depend on, as values for JSON. Results of other settings are ignored.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / FINISHED
        self.settings = sha256_bytes(json.dumps(settings, sort_keys=True).encode())

    def read(self, name: str, files: Sequence[Path]) -> dict[str, Any] | None:
        """The result of a volume; None without one for the same settings and the same content of ``files``."""
        try:
            found = self._kept(name)
            if found["settings"] == self.settings and found["files"] == [sha256_file(path) for path in files]:
                return dict(found["result"])
        except (OSError, TypeError, KeyError):
            pass
        return None

    def is_of_other_settings(self, name: str) -> bool:
        """Whether a volume has a result, and it is from other settings."""
        found = self._kept(name)
        return bool(found.get("files")) and found.get("settings") != self.settings

    def begin(self, name: str) -> None:
        """Note that a volume's files are being written. If the run is killed now, they count as unfinished."""
        self._keep(name, {"settings": self.settings, "files": None})

    def is_begun(self, name: str) -> bool:
        """Whether a run was killed while it wrote a volume's files."""
        return self._kept(name).get("files", ()) is None

    def _kept(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / f"{name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def write(self, name: str, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keep the result of a volume, as JSON, with the hashes of its input and output files."""
        hashes = [sha256_file(path) for path in files]
        self._keep(name, {"settings": self.settings, "files": hashes, "result": result})

    def _keep(self, name: str, content: Mapping[str, Any]) -> None:
        write_durably(self.folder / f"{name}.json", json.dumps(content).encode())

    def clear(self, names: Iterable[str]) -> None:
        """Remove the results of these volumes. The folder stays, as a sign that a run of this project wrote here."""
        for name in names:
            (self.folder / f"{name}.json").unlink(missing_ok=True)
