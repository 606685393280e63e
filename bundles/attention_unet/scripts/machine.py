"""What this machine has: devices, 16-bit units, and shared memory for loader processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from .faults import PipelineError


def devices() -> list[str]:
    """Names of this machine's devices: ``cpu``, ``cuda:0`` and so on, ``mps``."""
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def amp_by_default(device: torch.device | str) -> bool:
    """Whether 16 bits are faster than 32 on a device: on CUDA, and on CPUs with AVX512-BF16, such as all with AMX."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch since 2.10
    return torch.device(device).type == "cuda" or bool(capabilities.get("avx512_bf16"))


def uses_float16(amp: bool, device: torch.device | str) -> bool:
    """Whether forward passes in 16 bits are in float16 with scaled gradients: on CUDA cards without bfloat16."""
    is_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return bool(amp) and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False)


def uses_bfloat16(amp: bool, device: torch.device | str) -> bool:
    """Whether forward passes in 16 bits are in bfloat16: on a CPU, and on CUDA cards that have it."""
    return bool(amp) and torch.device(device).type in ("cpu", "cuda") and not uses_float16(amp, device)


def check_shared_memory(workers: int, batch_bytes: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Refuse loader processes whose batches do not fit into the shared memory: PyTorch would wait forever.

    Args:
        workers: The number of loader processes, each of which prepares two batches.
        batch_bytes: The size of a batch, in bytes.
        folder: The folder of the shared memory. Nothing is checked on a system without it.

    Raises:
        PipelineError: The shared memory is too small.
    """
    if not workers or not Path(folder).is_dir():
        return
    free, needed = shutil.disk_usage(folder).free, 2 * workers * batch_bytes
    if free < needed:
        raise PipelineError(
            f"{folder}: {free / 1e6:.1f} MB free, {workers} processes that load batches need {needed / 1e6:.1f} MB. "
            "Pass --train#dataloader#num_workers 0 (no such processes), or start a container with a larger --shm-size."
        )
