"""Volumes under way at once: results in order, a fault ends it."""

from __future__ import annotations

import threading

import pytest

from pipeline.errors import PipelineError
from pipeline.predict import AT_ONCE, overlapped


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
