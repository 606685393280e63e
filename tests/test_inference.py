"""Volumes under way at once: results in order, a fault ends it."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import PipelineError
from pipeline.inference import AT_ONCE, overlapped, predict_probability


def test_volumes_overlap_and_results_keep_their_order() -> None:
    together = threading.Barrier(AT_ONCE)

    def work(number: int) -> int:
        together.wait(timeout=60)  # breaks unless AT_ONCE are here at the same time
        return number * number

    assert overlapped(work, range(2 * AT_ONCE), "test") == [number * number for number in range(2 * AT_ONCE)]


def test_a_fault_ends_it_and_nothing_more_is_begun() -> None:
    begun = []
    failed = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            failed.set()
            raise PipelineError("broken")
        failed.wait(timeout=60)
        threading.Event().wait(0.2)

    with pytest.raises(PipelineError, match="broken"):
        overlapped(work, range(100), "test")
    assert len(begun) < 50


def test_networks_take_turns() -> None:
    """An inferer and a compiled network keep what they work on in themselves."""
    import torch
    from monai.transforms import Compose

    inside, most = [0], [0]

    def inferer(batch: torch.Tensor, network: object) -> torch.Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.05)
        inside[0] -= 1
        return batch[:, :1]

    bundle = SimpleNamespace(
        name="fake",
        device="cpu",
        network=None,
        inferer=inferer,
        preprocessing=lambda item: {"image": torch.zeros(3, 2, 2, 2)},
        to_probability=Compose([]),
    )
    work = functools.partial(predict_probability, [bundle])
    probabilities = overlapped(work, [Path("a"), Path("b"), Path("c"), Path("d")], "test")
    assert [probability.shape for probability in probabilities] == [(2, 2, 2)] * 4
    assert most == [1]
