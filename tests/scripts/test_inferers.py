"""Inferers: forward passes in 16 bits on a CPU that has them, and fewer slices at once where a GPU is full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SliceInferer

from pipeline.scripts import inferers


@pytest.mark.parametrize(("there", "asked", "half"), [(True, None, True), (False, None, False), (True, False, False)])
def test_a_cpu_trains_in_16_bits_where_it_has_units_for_them(
    recipe: ConfigParser, monkeypatch: pytest.MonkeyPatch, there: bool, asked: bool | None, half: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there}, raising=False)
    recipe["device"] = "$torch.device('cpu')"
    if asked is not None:
        recipe["amp"] = asked
    seen = []

    class Network(torch.nn.Conv2d):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(super().forward(batch))
            return seen[-1]

    inferer = recipe.get_parsed_content("train#trainer#inferer")
    logits = inferer(torch.rand(2, 3, 8, 8), Network(3, 1, 1))
    assert logits.dtype == torch.float32
    assert seen[0].dtype == (torch.bfloat16 if half else torch.float32)


class Hungry(torch.nn.Module):
    """A network whose device holds no more than ``most`` slices."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return batch[:, :1]


@pytest.mark.parametrize(("most", "shrunk"), [(4, 4), (1, 1), (0, None)])
def test_validation_takes_fewer_slices_where_a_gpu_is_full(caplog: Any, most: int, shrunk: int | None) -> None:
    volume = torch.rand(1, 3, 16, 16, 20)
    inferer = inferers.ShrinkingInferer(SliceInferer(roi_size=(16, 16), sw_batch_size=16, spatial_dim=2))
    if shrunk is None:
        with pytest.raises(torch.OutOfMemoryError):
            inferer(volume, Hungry(most))
        return
    assert torch.equal(inferer(volume, Hungry(most)), volume[:, :1])
    assert inferer.inferer.sw_batch_size == shrunk
    assert f"continues with {shrunk} slices at once" in caplog.text
