"""Inferers: the forward pass in 16 bits on a CPU, and slices that a full GPU takes in smaller numbers."""

from __future__ import annotations

import logging
from typing import Any

import torch
from monai.inferers import Inferer


class AutocastInferer(Inferer):
    """Another inferer in bfloat16 on a CPU; its result is float32. MONAI's engine does the same on CUDA alone.

    The inferer is left as it is on other devices, and where ``amp`` is false.
    """

    def __init__(self, inferer: Inferer, amp: bool, device: torch.device | str) -> None:
        super().__init__()
        self.inferer = inferer
        self.is_active = bool(amp) and torch.device(device).type == "cpu"

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch."""
        if not self.is_active:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            result = self.inferer(inputs, network, *args, **kwargs)
        return result.float() if isinstance(result, torch.Tensor) else result


class ShrinkingInferer(Inferer):
    """A slice inferer whose ``sw_batch_size`` is halved, for good, where a GPU's memory does not hold the slices."""

    def __init__(self, inferer: Any) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict a volume; a slice that does not fit by itself raises ``OutOfMemoryError``."""
        while True:
            try:
                return self.inferer(inputs, network, *args, **kwargs)
            except torch.OutOfMemoryError:
                if getattr(self.inferer, "sw_batch_size", 1) < 2:
                    raise
            # Outside of the handler, whose traceback holds the tensors.
            torch.cuda.empty_cache()
            self.inferer.sw_batch_size //= 2
            logging.getLogger("train").warning(
                "the GPU's memory ran out: goes on with %d slices at once", self.inferer.sw_batch_size
            )
