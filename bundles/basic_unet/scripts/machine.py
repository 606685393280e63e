"""What this machine offers: devices, 16-bit units, shared memory for loader processes."""

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
    """True where 16 bits are faster than 32: on CUDA, and on CPUs with AVX512-BF16 (all with AMX have it)."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch since 2.10
    return torch.device(device).type == "cuda" or bool(capabilities.get("avx512_bf16"))


def cuda_amp(amp: bool, device: torch.device | str) -> bool:
    """True where MONAI's engine does the 16-bit passes itself, which it does on CUDA alone."""
    return bool(amp) and torch.device(device).type == "cuda"


def amp_arguments(device: torch.device | str) -> dict[str, torch.dtype]:
    """Arguments of ``torch.autocast`` on CUDA: bfloat16 where the card has it, else float16; empty elsewhere."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return {}
    return {"dtype": torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16}


def check_shared_memory(workers: int, batch_bytes: int, folder: str = "/dev/shm") -> None:  # noqa: S108
    """Refuse loader processes whose batches the shared memory does not hold: PyTorch would wait for them for ever.

    Each process has two batches under way. Where the system has no such folder, nothing is checked.
    """
    if not workers or not Path(folder).is_dir():
        return
    free, needed = shutil.disk_usage(folder).free, 2 * workers * batch_bytes
    if free < needed:
        raise PipelineError(
            f"{folder}: {free / 1e6:.1f} MB free, {workers} processes that load batches need {needed / 1e6:.1f} MB. "
            "Pass --train#dataloader#num_workers 0 (batches come from memory), or give a container more by --shm-size"
        )
