"""A few runs of each harness in ``stress/``; ``make torture`` runs more, for docs/results/reliability.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.cohort.manifest import read_manifest, select
from stress import flips, fuzz, kills, numbers, sabotage

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
    build_manifest(os.environ["LGG_ROOT"], tmp_path / "m", split="none")
    volumes = list(select(read_manifest(tmp_path / "m"), "all"))
    assert numbers.nothing_scores_0(volumes) == {"predicting nothing, patients": (len(volumes), 0)}


def test_damage_is_reported_before_it_changes_a_figure() -> None:
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
