"""The command that writes the synthetic dataset: its options, its last line, and what it says where it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import phantom
from pipeline.command_line import run_cli

SMALL = ["--patients", "3", "--size", "32", "--slices", "4"]


def test_scripts_get_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(phantom.main, [str(tmp_path), *SMALL, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"folder": str(tmp_path / "kaggle_3m"), "patients": 3}
    assert "next: " in shown.err


def test_the_last_line_is_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "with space"
    assert run_cli(phantom.main, [str(out), *SMALL]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"3 phantoms in {out / 'kaggle_3m'}; next: ")
    command = shlex.split(last.partition("next: ")[2])
    given = ["--split", "random", "--out", str(out / "manifest")]
    assert command == ["lgg-flair", "manifest", str(out / "kaggle_3m"), *given]
    assert len(list((out / "kaggle_3m").iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            [],
            {"patients": 24, "size": 128, "slices": 20, "seed": 0, "lesion_free": 0, "volumes": False, "force": False},
        ),
        (
            [*SMALL, "--seed", "5", "--lesion-free", "2", "--volumes", "--force"],
            {"patients": 3, "size": 32, "slices": 4, "seed": 5, "lesion_free": 2, "volumes": True, "force": True},
        ),
    ],
)
def test_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: dict[str, object]
) -> None:
    asked = []

    def record(out: Path, **given: Any) -> Path:
        asked.append((out, given))
        return out / "kaggle_3m"

    monkeypatch.setattr(phantom, "make_phantoms", record)
    assert phantom.main([str(tmp_path), *options]) == 0
    assert asked == [(tmp_path, expected)]


def test_refusals_are_one_message_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(phantom.main, [str(tmp_path / "out"), "--size", "31"]) == 2
    texts = capsys.readouterr()
    assert texts.err == "error: --size 31 (expected 32 to 1024). Pass another --size.\n"
    assert texts.out == ""
    assert not (tmp_path / "out").exists()


def test_another_call_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(phantom.main, [str(tmp_path), *SMALL]) == 0
    assert run_cli(phantom.main, [str(tmp_path), *SMALL, "--seed", "5"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run_cli(phantom.main, [str(tmp_path), *SMALL, "--seed", "5", "--force"]) == 0


def test_an_interrupted_call_ends_with_130_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, written = Image.Image.save, []

    def interrupted(self: Image.Image, target: Path) -> None:
        written.append(target)
        if len(written) == 12:  # amid the second patient
            raise KeyboardInterrupt
        save(self, target)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run_cli(phantom.main, [str(tmp_path), *SMALL]) == 130
    assert len(list((tmp_path / "kaggle_3m").iterdir())) == 1
    assert run_cli(phantom.main, [str(tmp_path), *SMALL]) == 0
    assert len(list((tmp_path / "kaggle_3m").iterdir())) == 3
