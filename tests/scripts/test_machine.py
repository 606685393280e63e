"""What a training asks of the machine: 16 bits where they are faster, enough shared memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.scripts import machine


@pytest.mark.parametrize(("device", "amp"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_the_engines_amp_is_for_cuda_devices(recipe: ConfigParser, device: str, amp: bool) -> None:
    recipe["device"] = f"$torch.device('{device}')"
    recipe["network"] = recipe["network_def"]
    recipe["amp"] = True
    assert recipe.get_parsed_content("train#trainer#amp") is amp
    assert recipe.get_parsed_content("validate#evaluator#amp") is amp


def test_too_little_shared_memory_is_reported_before_the_first_batch(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    machine.check_shared_memory(0, 2**40, str(tmp_path))
    machine.check_shared_memory(2, 2**24, str(tmp_path))
    machine.check_shared_memory(2, 2**40, str(tmp_path / "none"))
    with pytest.raises(PipelineError, match=r"67.1 MB free, 2 processes that load batches need 67.1 MB\. Pass --train"):
        machine.check_shared_memory(2, 2**24 + 1, str(tmp_path))
