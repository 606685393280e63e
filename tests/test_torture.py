"""A few of each harness in ``torture/``; the counts of docs/reliability.md are ``make torture``'s."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torture import flips, fuzz, kills, numbers, sabotage

from pipeline import manifest as manifest_cli
from pipeline.bundle import _read_state
from pipeline.datalist import read_manifest, select
from pipeline.errors import PipelineError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is wanted"),
]


def test_kills_while_saving_leave_whole_checkpoints() -> None:
    assert kills.saver(1, seed=0) == 0


def test_kills_while_writing_leave_whole_files() -> None:
    assert kills.files(6, seed=0) == 0


def test_a_killed_training_ends_as_if_nothing_had_happened() -> None:
    assert kills.training(1, seed=0) == 0


def test_spoilt_write_points_leave_what_was_or_what_was_to_be() -> None:
    """Disks that refuse, writes cut short, kills: of a manifest that replaces another, and of an evaluation."""
    found = sabotage.sabotage(12, seed=0, names=("manifest, replaced", "report", "evaluate"))
    assert {key: failed for key, (_, failed) in found.items() if failed} == {}
    assert sum(tried for tried, _ in found.values()) == 12


def test_dsc_is_that_of_others_and_nothing_scores_0(manifest: Path) -> None:
    volumes = list(select(read_manifest(manifest), "all"))
    found = numbers.numbers(90, seed=0) | numbers.nothing_scores_0(volumes)
    assert {kind: failed for kind, (_, failed) in found.items() if failed} == {}


@pytest.mark.real
@pytest.mark.skipif("LGG_ROOT" not in os.environ, reason="LGG_ROOT does not name the published folder kaggle_3m")
def test_predicting_nothing_scores_0_on_real_patients(tmp_path: Path) -> None:
    assert manifest_cli.main([os.environ["LGG_ROOT"], "--out", str(tmp_path / "m"), "--split", "none"]) == 0
    volumes = list(select(read_manifest(tmp_path / "m"), "all"))
    assert numbers.nothing_scores_0(volumes) == {"predicting nothing, patients": (len(volumes), 0)}


def test_damage_is_told_before_it_changes_a_figure() -> None:
    assert {kind: failed for kind, (_, failed) in flips.flips(40, seed=0).items()} == {
        "slices": 0,
        "volumes": 0,
        "manifest": 0,
        "manifest of a training": 0,
        "weights": 0,
        "volumes of no manifest": 0,
        "masks": 0,
    }


def test_mutated_inputs_are_taken_or_refused() -> None:
    assert sum(failed for _, failed, _ in fuzz.fuzz(700, seed=1).values()) == 0


def test_weights_that_lead_the_unpickler_astray_are_an_error() -> None:
    """Found by mutation: torch's unpickler pops from an empty list."""
    import torch

    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aRK\x03tR."
    with pytest.raises(PipelineError, match="no readable weights"):
        _read_state(data, Path("model.pt"), torch.device("cpu"))
