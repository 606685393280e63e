"""Training curves are read from TensorBoard's files, and long ones are shortened."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.curves import MAX_POINTS, read_curves, read_events, write_curves


def write_events(folder: Path, values: dict[str, list[tuple[int, float]]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(folder)) as writer:
        for tag, curve in values.items():
            for step, value in curve:
                writer.add_scalar(tag, value, step)


def test_curves_come_back_and_long_ones_are_thinned(tmp_path: Path) -> None:
    assert read_events(tmp_path) == {}
    long = [(step, float(step)) for step in range(1, 4 * MAX_POINTS + 1)]
    write_events(
        tmp_path, {"train_loss": long, "val_dsc": [(10, 0.25), (20, float("nan")), (30, 0.5)], "other": [(1, 1.0)]}
    )
    found = read_events(tmp_path)
    assert found["val_dsc"] == [(10.0, 0.25), (30.0, 0.5)]
    assert len(found["train_loss"]) == MAX_POINTS
    assert found["train_loss"][0] == (4.0, 2.5)
    assert "other" not in found


def test_a_resumed_training_is_one_curve(tmp_path: Path) -> None:
    write_events(tmp_path, {"val_dsc": [(10, 0.25), (20, 0.3)]})
    write_events(tmp_path, {"val_dsc": [(20, 0.5), (30, 0.75)]})
    assert read_events(tmp_path)["val_dsc"] == [(10.0, 0.25), (20.0, 0.5), (30.0, 0.75)]
    assert read_events(tmp_path, 100)["val_dsc"] == [(1000.0, 0.25), (2000.0, 0.5), (3000.0, 0.75)]  # by iteration


def test_files_come_back_without_the_host(tmp_path: Path) -> None:
    write_events(tmp_path, {"val_dsc": [(10, 0.25)]})
    curves = {"basic_unet, fold 0": read_events(tmp_path)}
    write_curves(tmp_path / "curves.json", curves)
    assert read_curves(tmp_path / "curves.json") == curves
    assert socket.gethostname() not in (tmp_path / "curves.json").read_text()
    assert read_curves(tmp_path / "none.json") == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"val_dsc": [1]}}', '{"a": {"val_dsc": [["x", 1]]}}'])
def test_damaged_curves_are_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "curves.json").write_text(content)
    with pytest.raises(PipelineError, match="no readable curves"):
        read_curves(tmp_path / "curves.json")


def test_damaged_events_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"no events at all")
    assert read_events(tmp_path) == {}
