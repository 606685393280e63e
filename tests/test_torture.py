"""A few of each harness in ``torture/``; the counts of docs/reliability.md are ``make torture``'s."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torture import flips, fuzz, kills

from pipeline.bundle import _read_state
from pipeline.errors import PipelineError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is wanted"),
]


def test_kills_while_saving_leave_whole_checkpoints() -> None:
    assert kills.saver(4, seed=0) == 0


def test_kills_while_writing_leave_whole_files() -> None:
    assert kills.files(6, seed=0) == 0


def test_a_killed_training_ends_as_if_nothing_had_happened() -> None:
    assert kills.training(2, seed=0) == 0


def test_damage_is_told_before_it_changes_a_figure() -> None:
    assert {kind: failed for kind, (_, failed) in flips.flips(40, seed=0).items()} == {
        "slices": 0,
        "volumes": 0,
        "manifest": 0,
        "weights": 0,
    }


def test_mutated_inputs_are_taken_or_refused() -> None:
    assert sum(failed for _, failed, _ in fuzz.fuzz(700, seed=1).values()) == 0


def test_weights_that_lead_the_unpickler_astray_are_an_error() -> None:
    """Found by mutation: torch's unpickler pops from an empty list."""
    import torch

    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aRK\x03tR."
    with pytest.raises(PipelineError, match="no readable weights"):
        _read_state(data, Path("model.pt"), torch.device("cpu"))
