"""Weights are read as tensors by name, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.weights import read_state


def test_weights_that_lead_the_unpickler_astray_are_an_error() -> None:
    """Found by mutation: torch's unpickler pops from an empty list."""
    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aRK\x03tR."
    with pytest.raises(PipelineError, match="no readable weights"):
        read_state(data, Path("model.pt"), torch.device("cpu"))
