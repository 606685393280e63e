"""The command that writes the report: where the page goes, what is printed, and how bad options end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import report
from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.pages.report import write_report
from tests.pages.evaluations import changed, data_of, make_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def test_the_page_goes_into_the_first_run_and_its_place_is_printed(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    assert report.main([str(first), str(second)]) == 0
    page = first / "report.html"
    size = page.stat().st_size / 1e6
    *notes, last = capsys.readouterr().out.splitlines()
    assert [note.split(" no DSC,")[0] for note in notes] == ["note: first, second:"]
    assert last == f"Research only, not for clinical use. Open in a browser: {page} ({size:.1f} MB)"
    assert not (second / "report.html").exists()
    write_report([first, second], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_out_names_and_viewers_are_taken(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.html"
    options = ["--out", str(page), "--name", "one", "--name", "other", "--viewers", "1"]
    assert report.main([*map(str, runs), *options]) == 0
    assert data_of(page)["runs"] == ["one", "other"]
    assert data_of(page)["order"] == ["7", "12", "3"]  # the worst, and the other examples
    *_, note, last = capsys.readouterr().out.splitlines()
    assert note.startswith("note: the page shows slices of 3 of 4 patients")
    assert str(page) in last
    assert not (runs[0] / "report.html").exists()


def test_scripts_get_one_document(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(runs[0]), "--viewers", "0", "--out", str(tmp_path / "page.html"), "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["report"] == str(tmp_path / "page.html")
    assert document["notes"]
    assert all(f"note: {note}\n" in shown.err for note in document["notes"])


def test_no_slices_where_none_are_asked_for(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(runs[0]), "--viewers", "0", "--out", str(tmp_path / "none.html")]) == 0
    assert data_of(tmp_path / "none.html")["patients"] == {}
    assert "slices of 0 of 4" in capsys.readouterr().out


def test_what_is_missing_from_the_page_is_printed(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    for run in (first, second):
        (run / "volumes" / "3_image.nii.gz").unlink()
    changed(second, seen_in_training=["12"], manifest_sha256="ef" * 32)
    assert report.main([str(first), str(second)]) == 0
    *notes, last = capsys.readouterr().out.splitlines()
    assert last.startswith("Research only")
    assert all(line.startswith("note: ") for line in notes)
    for part in ("no slices of 3:", "different manifests", "trained on: 12", "no DSC"):
        assert any(part in line for line in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "one"], "1 --name for 2 RUN"),
        (["--name", "same", "--name", "same"], "the same name twice"),
        (["--viewers", "-1"], "expected 0 or more"),
        (["--out", "."], "is a folder"),
    ],
)
def test_bad_options_end_with_a_line_and_status_2(
    runs: list[Path], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    given = [*map(str, runs), *options]
    with pytest.raises(PipelineError, match=message):
        report.main(given)
    assert run_cli(report.main, given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", said.err)


@pytest.mark.parametrize("given", [[], ["run", "--viewers", "many"]], ids=["no run", "no number"])
def test_arguments_that_cannot_be_read_end_with_status_2(given: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main(given)
    assert ended.value.code == 2
