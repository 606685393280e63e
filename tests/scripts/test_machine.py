"""What a training asks of the machine: 16 bits where they are faster, enough shared memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.scripts import machine


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "used_by"),
    [("cpu", True, "inferer"), ("cuda", True, "inferer"), ("cuda:1", False, "engine"), ("mps", True, "nobody")],
)
def test_float16_is_for_cuda_cards_without_bfloat16(
    recipe: ConfigParser, monkeypatch: pytest.MonkeyPatch, device: str, has_bfloat16: bool, used_by: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    recipe["device"] = f"$torch.device('{device}')"
    recipe["amp"] = True
    assert recipe.get_parsed_content("float16") is (used_by == "engine")
    assert recipe.get_parsed_content("train#inferer").is_active is (used_by == "inferer")
    assert recipe["train#trainer#amp"] == "@float16"


def test_too_little_shared_memory_is_reported_before_the_first_batch(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    machine.check_shared_memory(0, 2**40, str(tmp_path))
    machine.check_shared_memory(2, 2**24, str(tmp_path))
    machine.check_shared_memory(2, 2**40, str(tmp_path / "none"))
    with pytest.raises(PipelineError, match=r"67.1 MB free, 2 processes that load batches need 67.1 MB\. Pass --train"):
        machine.check_shared_memory(2, 2**24 + 1, str(tmp_path))
