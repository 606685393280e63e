"""The command that downloads the dataset: licence first, then the next command; a failure is one message."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cohort.download import HANDLE
from pipeline.command_line import run_cli
from pipeline.fetch import main
from tests.cohort.kaggle import archive, make_old, stand_in


@pytest.fixture
def kagglehub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module = stand_in(tmp_path / "cache" / "versions" / "2")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_prints_licence_and_next_command_for_the_outer_folder(
    kagglehub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(main, []) == 0
    printed = capsys.readouterr().out
    outer = tmp_path / "cache" / "versions" / "2" / "kaggle_3m"
    assert f"next: lgg-flair manifest {outer}\n" in printed
    assert "1 patients" in printed
    for word in ("CC BY-NC-SA 4.0", "Buda et al.", "Mazurowski et al."):
        assert word in printed
    assert kagglehub.calls == [(HANDLE, None)]


def test_dest_is_downloaded_to_directly_and_quoted(
    kagglehub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "with space"
    assert run_cli(main, ["--dest", str(dest)]) == 0
    assert kagglehub.calls == [(HANDLE, str(dest))]
    assert f"'{dest / 'kaggle_3m'}'" in capsys.readouterr().out


def test_scripts_get_one_document(kagglehub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "new"
    assert run_cli(main, ["--dest", str(dest), "--json"]) == 0
    shown = capsys.readouterr()
    patients = sum(folder.is_dir() for folder in (dest / "kaggle_3m").iterdir())
    assert json.loads(shown.out) == {"folder": str(dest / "kaggle_3m"), "patients": patients}
    assert "CC BY-NC-SA" in shown.err


def test_a_copy_is_named_in_place_of_the_cache(
    kagglehub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_old(kagglehub, archive(tmp_path / "cache"))
    dest = tmp_path / "new" / "dest"
    assert run_cli(main, ["--dest", str(dest)]) == 0
    assert f"next: lgg-flair manifest {dest / 'kaggle_3m'}\n" in capsys.readouterr().out


def test_dest_that_is_a_file_is_refused_before_any_download(
    kagglehub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run_cli(main, ["--dest", str(tmp_path / "file")]) == 2
    assert "file: is a file (expected a folder)" in capsys.readouterr().err
    assert kagglehub.calls == []


def test_failures_are_one_message_with_a_remedy(
    kagglehub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_old(kagglehub, archive(tmp_path / "cache", slices=False))
    assert run_cli(main, []) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'cache'}: no folder kaggle_3m with slices")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert run_cli(main, []) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: kagglehub cannot be imported")
    assert "pip install kagglehub" in error
    assert len(error.splitlines()) == 1
