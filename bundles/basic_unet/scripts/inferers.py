"""Inferers for 16-bit forward passes on a CPU, and for GPUs with little memory."""

from __future__ import annotations

import logging
from typing import Any

import torch
from monai.inferers import Inferer

from .machine import uses_bfloat16


class AutocastInferer(Inferer):
    """Run another inferer in bfloat16 on a CPU or on CUDA, with a float32 result.

    MONAI's engine does the same only on CUDA, and there it scales the gradients. That is needed for float16 only, and
    the GPU waits at each step until the scale is known.

    Args:
        inferer: The inferer to run.
        amp: Use bfloat16. False runs the inferer unchanged.
        device: The network's device. The inferer runs unchanged on MPS, and on CUDA cards without bfloat16.
    """

    def __init__(self, inferer: Inferer, amp: bool, device: torch.device | str) -> None:
        super().__init__()
        self.inferer, self.kind = inferer, torch.device(device).type
        self.is_active = uses_bfloat16(amp, device)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch."""
        if not self.is_active:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast(self.kind, torch.bfloat16):
            result = self.inferer(inputs, network, *args, **kwargs)
        return result.float() if isinstance(result, torch.Tensor) else result


class ShrinkingInferer(Inferer):
    """A slice inferer that halves its ``sw_batch_size`` permanently whenever a GPU's memory is too small.

    Args:
        inferer: MONAI's ``SliceInferer``.
    """

    def __init__(self, inferer: Any) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict a volume.

        Raises:
            OutOfMemoryError: Even a single slice does not fit into the memory.
        """
        while True:
            try:
                return self.inferer(inputs, network, *args, **kwargs)
            except torch.OutOfMemoryError:
                if getattr(self.inferer, "sw_batch_size", 1) < 2:
                    raise
            # This is outside of the handler, because its traceback keeps the tensors alive.
            torch.cuda.empty_cache()
            self.inferer.sw_batch_size //= 2
            logging.getLogger("train").warning(
                "the GPU's memory ran out: the prediction continues with %d slices at once", self.inferer.sw_batch_size
            )
