"""What stops a training, told in one line: values that are not finite with their place, memory, workers, the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.inferers import Inferer, SliceInferer

GO_ON = "--resume True goes on from the newest checkpoint."


DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""What a disk answers that is full or broken."""


class TrainingError(RuntimeError):
    """What the user can mend; the message names subject, found and remedy."""


def chain_of(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, what that was raised from, and so on."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def told(error: BaseException) -> str | None:
    """One line for a fault that the user can mend, None for any other error.

    Args:
        error: as it left the run; MONAI and ignite wrap what happened within.
    """
    chain = chain_of(error)
    # What PyTorch says of a loader process stands before the empty queue by which it saw it.
    cause = next((found for found in chain if isinstance(found, TrainingError) or _of_a_loader(found)), chain[-1])
    text = str(cause).strip()
    first = text.partition("\n")[0]
    line = None
    if isinstance(cause, (TrainingError, AssertionError)):
        line = text or None
    elif isinstance(cause, KeyboardInterrupt):
        line = f"interrupted. {GO_ON}"
    elif out_of_memory(cause):
        line = f"memory ran out ({first or 'MemoryError'}). Lower --batch_size or --image_size. {GO_ON}"
    elif _of_a_loader(cause):
        line = (
            f"{first or type(cause).__name__}. A process that loads batches was killed or hangs, mostly for want of "
            f"memory or of /dev/shm. Free some, or pass --train#dataloader#num_workers 0. {GO_ON}"
        )
    elif isinstance(cause, RuntimeError) and text.startswith("PytorchStreamReader"):
        line = f"weights that are damaged or cut short ({first[:80]}). Restore the file that --ckpt_path names."
    elif isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        where = f"{os.fsdecode(cause.filename)}: " if cause.filename else ""
        line = f"{where}{cause.strerror}. Free space on the disk or mend it. {GO_ON}"
    elif isinstance(cause, OSError) and cause.filename:
        line = f"{os.fsdecode(cause.filename)}: {cause.strerror}. Check the path and its permissions. {GO_ON}"
    return line


def _of_a_loader(error: BaseException) -> bool:
    """True for what is raised where a process that loads batches is killed, or hangs."""
    told_so = isinstance(error, RuntimeError) and str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    return told_so or isinstance(error, (ConnectionResetError, BrokenPipeError, EOFError))


def out_of_memory(error: BaseException) -> bool:
    """True for what Python and PyTorch raise where memory is refused, on a CPU or a GPU."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    )


def check_shared_memory(workers: int, batch_bytes: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Refuse loader processes whose batches the shared memory does not hold: PyTorch waits for them for ever.

    Args:
        workers: processes, each with two batches under way.
        batch_bytes: of one batch.
        folder: of the shared memory; where there is none, nothing is checked.

    Raises:
        TrainingError: it is too small.
    """
    if not workers or not Path(folder).is_dir():
        return
    free, needed = shutil.disk_usage(folder).free, 2 * workers * batch_bytes
    if free < needed:
        raise TrainingError(
            f"{folder}: {free / 1e6:.1f} MB free, {workers} processes that load batches need {needed / 1e6:.1f} MB. "
            "Pass --train#dataloader#num_workers 0 (batches come from memory), or give a container more by --shm-size"
        )


def check_volumes(datalist: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Hold a manifest against the hash beside it, its volumes against its own: damage would change figures untold.

    Args:
        datalist: manifest.json; another datalist, which knows no hashes, is passed over.
        items: of it.

    Raises:
        TrainingError: the manifest or a volume is another than it was built as.
    """
    path = Path(datalist)
    proof = path.with_name(f"{path.name}.sha256")
    try:
        content = path.read_bytes()
        if proof.is_file() and hashlib.sha256(content).hexdigest() not in proof.read_text(errors="replace").split():
            raise TrainingError(
                f"{path}: changed since it was built, its SHA-256 is not that in {proof.name}. Restore it or build it "
                f"again; if you changed it yourself, remove {proof.name}"
            )
        known = dict(json.loads(content)["patients"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for item in items:
        if "patient" in item and item["patient"] not in known:
            raise TrainingError(f"{path}: knows nothing of the patient of {item['image']}. Build it again")
        for kind in ("image", "label"):
            expected = known.get(item.get("patient"), {}).get(f"{kind}_sha256")
            if expected and hashlib.sha256(Path(item[kind]).read_bytes()).hexdigest() != expected:
                raise TrainingError(
                    f"{item[kind]}: changed since the manifest was built. Restore it or build it again."
                )


def explain() -> None:
    """From here on a fault that ends this program is its one line on standard error, without a traceback."""
    previous = sys.excepthook
    # StatsHandler logs the traceback of whatever passes by it.
    logging.getLogger("train").addFilter(lambda record: not record.exc_info)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = told(error)
        if line is None:
            previous(kind, error, trace)
        else:
            sys.stdout.flush()
            sys.stderr.write(f"\nerror: {line}\n")
            # PyTorch raises where any process that loads batches ends: not in what Python calls at its exit.
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    sys.excepthook = hook
    elsewhere = threading.excepthook
    # What a thread that writes curves is refused, the program is told at its next entry.
    threading.excepthook = lambda given: (
        None if given.exc_value is not None and told(given.exc_value) else elsewhere(given)
    )


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or Inf."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return []
    # One transfer from a GPU, not one a tensor.
    finite = torch.stack([torch.isfinite(tensor.detach()).all() for _, tensor in named]).tolist()
    return [name for (name, _), fine in zip(named, finite, strict=True) if not fine]


class StopAtNaN:
    """Handler that ends a training whose loss is not finite before a step is taken by it, naming the first such value.

    Args:
        network: that is trained.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def loss(self, engine: Any) -> None:
        """Look at the loss; for ``IterationEvents.LOSS_COMPLETED``.

        Raises:
            TrainingError: it is NaN or Inf.
        """
        output: Mapping[str, torch.Tensor] = engine.state.output
        if bool(torch.isfinite(output["loss"])):
            return
        inputs = not_finite((f"the batch's {key}", output[key]) for key in ("image", "label"))
        places = inputs or self._weights() or not_finite([("the network's prediction", output["pred"])])
        raise TrainingError(
            f"the training loss is not finite at iteration {engine.state.iteration}: NaN or Inf first in "
            f"{_list(places) or 'the loss itself'}. "
            + (
                "Check the volumes and the augmentation."
                if inputs
                else "Lower --learning_rate, or train with --amp False; checkpoints of before are kept."
            )
        )

    def weights(self, engine: Any) -> None:
        """Look at the network after an epoch, before it is kept; for ``Events.EPOCH_COMPLETED``.

        Raises:
            TrainingError: it holds NaN or Inf.
        """
        places = self._weights()
        if places:
            raise TrainingError(
                f"after iteration {engine.state.iteration} the network holds NaN or Inf in {_list(places)}. "
                "Lower --learning_rate, or train with --amp False; checkpoints of before are kept."
            )

    def _weights(self) -> list[str]:
        named = [*self.network.named_parameters(), *self.network.named_buffers()]
        return [f"network {name}" for name in not_finite(named)]


def _list(places: list[str]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


class ShrinkingInferer(Inferer):
    """A slice inferer that takes half the slices at once where a GPU's memory does not hold them, and says so.

    Args:
        inferer: whose ``sw_batch_size`` is halved, for the rest of the run.
    """

    def __init__(self, inferer: SliceInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **named: Any) -> Any:
        """Predict a volume.

        Raises:
            torch.OutOfMemoryError: not even one slice fits.
        """
        while True:
            try:
                return self.inferer(inputs, network, *args, **named)
            except torch.OutOfMemoryError:
                if self.inferer.sw_batch_size < 2:
                    raise
            # Out of the handler, whose traceback holds the tensors.
            torch.cuda.empty_cache()
            self.inferer.sw_batch_size //= 2
            logging.getLogger("train").warning(
                "the GPU's memory ran out: validation goes on with %d slices at once (--sw_batch_size)",
                self.inferer.sw_batch_size,
            )
