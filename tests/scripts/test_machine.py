"""What a training asks of the machine: 16 bits where they are faster, memory that is kept, enough shared memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monai.bundle import ConfigParser

from pipeline.errors import PipelineError
from pipeline.scripts import machine
from tests.conftest import BUNDLES


@pytest.mark.parametrize(("device", "amp"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_the_engines_amp_is_for_cuda_devices(recipe: ConfigParser, device: str, amp: bool) -> None:
    recipe["device"] = f"$torch.device('{device}')"
    recipe["network"] = recipe["network_def"]
    recipe["amp"] = True
    assert recipe.get_parsed_content("train#trainer#amp") is amp
    assert recipe.get_parsed_content("validate#evaluator#amp") is amp


def test_tensors_are_kept_where_glibc_can_be_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: told.append(given)))
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    machine.keep_freed_memory()
    assert told == []
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    machine.keep_freed_memory()
    assert told == [(-4, 0), (-1, -1), (-8, 1)]
    for config in ("train", "multi_gpu_train"):
        content = json.loads((BUNDLES[0] / "configs" / f"{config}.json").read_text())
        assert "$@keep_memory" in content["initialize"]


def test_too_little_shared_memory_is_told_before_the_first_batch(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    machine.check_shared_memory(0, 2**40, str(tmp_path))
    machine.check_shared_memory(2, 2**24, str(tmp_path))
    machine.check_shared_memory(2, 2**40, str(tmp_path / "none"))
    with pytest.raises(PipelineError, match=r"67.1 MB free, 2 processes that load batches need 67.1 MB\. Pass --train"):
        machine.check_shared_memory(2, 2**24 + 1, str(tmp_path))
