"""The report shows what was compared, needs no other file, escapes names, and refuses runs that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_label
from pipeline.pages.report import read_runs, worst_first, write_report
from pipeline.scoring.curves import CURVES_NAME
from pipeline.scoring.results import read_scores, write_scores
from tests.pages.evaluations import (
    DEPTH,
    HOSTILE,
    WORST_FIRST,
    changed,
    data_of,
    hostile_page,
    make_runs,
    many_patients,
    slices_of,
    trained_on,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def written(runs: list[Path]) -> Path:
    return write_report(runs)[0]


@pytest.fixture(scope="module")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_page(runs[0], tmp_path_factory.mktemp("hostile") / "run")


def test_page_says_what_was_compared(written: Path, runs: list[Path]) -> None:
    text = written.read_text()
    first, second = (json.loads((run / "summary.json").read_text()) for run in runs)
    assert second["dsc_mean"] == 1.0
    for figure in (f"{first['dsc_mean']:.4f}", f"{first['dsc_mean_95'][0]:.4f}", f"+{1 - first['dsc_mean']:.4f}"):
        assert figure in text
    assert "3, 0" in text  # better, worse
    assert "0.250" in text  # Wilcoxon, three patients, all better
    for word in ("DiceCELoss", "1,000 steps of 8 slices, 96 px", "native", "ab" * 32, "cd" * 32, "torch 2.13.0"):
        assert word in text
    assert text.count("Research only") >= 2
    assert "pipeline.evaluate --manifest data_manifest" in text
    assert text.count("<svg") == 3


def test_page_needs_nothing_but_itself(written: Path) -> None:
    text = written.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"url\((?!#)", text)
    assert "Content-Security-Policy" in text


def test_page_is_the_same_from_copied_folders(runs: list[Path], tmp_path: Path) -> None:
    again = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    assert write_report(again, tmp_path / "again.html")[0] == tmp_path / "again.html"
    assert write_report([*map(str, runs)], str(tmp_path / "page.html"))[0] == tmp_path / "page.html"
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_patients_stand_worst_first(runs: list[Path], written: Path) -> None:
    read = read_runs(runs)
    assert worst_first(read) == list(WORST_FIRST)
    assert read[0].dsc["7"] < read[0].dsc["3"]
    assert data_of(written)["order"] == list(WORST_FIRST)


def test_only_the_worst_have_slices_where_asked(runs: list[Path], tmp_path: Path) -> None:
    one, notes = write_report(runs[:1], tmp_path / "one.html", viewers=1)
    assert data_of(one)["order"] == ["7", "12", "3"]  # the worst, and the other examples
    assert any("slices of 3 of 4" in note for note in notes)
    none, notes = write_report(runs[:1], tmp_path / "none.html", viewers=0)
    assert data_of(none)["patients"] == {}
    assert any("slices of 0 of 4" in note for note in notes)


def test_slices_and_masks_are_in_the_page(written: Path, runs: list[Path]) -> None:
    """The images of the page decode to the volumes."""
    view = data_of(written)["patients"]["12"]
    rows, columns = slice(2, 38), slice(0, 36)  # the head and four pixels of air
    assert (view["height"], view["width"], view["depth"]) == (36, 36, DEPTH)
    truth = load_label(runs[0] / "volumes" / "12_label.nii.gz")
    for run, folder in zip(("first", "second"), runs, strict=True):
        mask = load_label(folder / "masks" / "12_mask.nii.gz")[rows, columns]
        assert np.array_equal(slices_of(view, view["masks"][run]) > 0, mask.astype(bool))
    assert np.array_equal(slices_of(view, view["truth"]) > 0, truth[rows, columns] > 0)
    assert list(view["maps"]) == ["second"]
    assert 1 <= view["start"] < 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "no summary.json in it"),
        (lambda run: (run / "summary.json").write_text("{"), "no readable summary"),
        (lambda run: (run / "summary.json").write_text("{}"), "missing"),
        (lambda run: (run / "scores.csv").unlink(), "no readable scores"),
        (
            lambda run: (run / "scores.csv").write_text((run / "scores.csv").read_text().rsplit("\n", 2)[0] + "\n"),
            "not of one evaluation",
        ),
        (lambda run: (run / CURVES_NAME).write_text("[1]"), "no readable curves"),
        (lambda run: changed(run, protocol="reference"), "different protocols"),
        (lambda run: (run / "masks" / "3_mask.nii.gz").write_bytes(b"x"), "no readable NIfTI"),
        (
            lambda run: shutil.copy(run / "volumes" / "3_label.nii.gz", run / "volumes" / "12_label.nii.gz"),
            "different truths",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    runs: list[Path], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    second = shutil.copytree(runs[1], tmp_path / "second")
    spoil(second)
    with pytest.raises(PipelineError, match=message):
        write_report([runs[0], second], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["one"]}, "1 --name for 2 RUN"),
        ({"names": ["same", "same"]}, "the same name twice"),
        ({"viewers": -1}, "expected 0 or more"),
        ({"out": "."}, "is a folder"),
    ],
)
def test_bad_options_are_refused(runs: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        write_report(runs, **options)


def test_one_run_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="the same RUN twice"):
        write_report([runs[0], runs[0]])
    with pytest.raises(PipelineError, match="nothing there"):
        write_report([tmp_path / "none"])


def test_case_34_missing_volumes_and_patients_are_reported(runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    for run in (first, second):
        (run / "volumes" / "3_image.nii.gz").unlink()
    rows = (second / "scores.csv").read_text().splitlines()
    (second / "scores.csv").write_text("\n".join(rows[:-1]) + "\n")
    changed(second, seen_in_training=["12"], manifest_sha256="ef" * 32, volumes=3)
    written, notes = write_report([first, second])
    said = "\n".join(notes)
    for part in ("no slices of 3:", "different manifests", "not of the same patients", "trained on: 12", "no DSC"):
        assert part in said
    assert written == first / "report.html"
    assert "trained on: 12" in written.read_text()
    assert "3" not in data_of(written)["patients"]


def test_patients_that_were_trained_on_are_folded_with_a_subtotal(runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    alone = first / "report.html"
    write_report([trained_on(first, "7", "12")])
    text = re.sub(r"\s+", " ", alone.read_text())
    assert "2 patients that the weights were not trained on" in text
    assert "<summary>2 patients that the weights were trained on</summary>" in text
    main, _, folded = text.partition('<table id="trained-on"')
    assert "not trained on" in main
    assert {*re.findall(r'<tr data-patient="(\d+)"', main.partition('<table id="patients"')[2])} == {"3", "9"}
    assert {*re.findall(r'<tr data-patient="(\d+)"', folded)} == {"7", "12"}
    scores = {score.patient: score.dsc for score in read_scores(first)}
    seen = (scores["7"] + scores["12"]) / 2
    assert f'{scores["3"]:.4f}<br><span class="soft">1 patient<' in main  # 9 has no DSC
    assert f'{seen:.4f}<br><span class="soft">2 patients' in main
    assert "&dagger;" not in text
    write_report([first, trained_on(second, "7")])  # the table marks a patient that only one run was trained on
    assert "&dagger;: trained on by this run" in alone.read_text()
    assert alone.read_text().count("&dagger;") == 4


def runs_table(text: str) -> list[dict[str, str]]:
    """The table of runs: for each run, head of the column -> text of the cell."""
    head, _, body = text.partition('<table id="runs">')[2].partition("</table>")[0].partition("<tbody>")
    heads, *rows = (
        [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.split(r"</t[dh]>", row)[:-1]]
        for row in (head, *body.split("</tr>")[:-1])
    )
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_runs_are_compared_on_patients_that_neither_was_trained_on(runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    text = write_report([trained_on(first, "7", "12"), trained_on(second)])[0].read_text()
    one, two = runs_table(text)
    dsc = [{score.patient: score.dsc for score in read_scores(run)} for run in (first, second)]
    assert two["difference"].split()[0] == f"+{dsc[1]['3'] - dsc[0]['3']:.4f}"
    assert two["difference"].endswith(" 1 patient")
    assert (two["better, worse"], two["p"]) == ("1, 0", "1.000")
    assert (one["trained on"].split()[1:], two["trained on"]) == (["2", "patients"], "")
    assert two["not trained on"].split() == ["1.0000", "3", "patients"]
    assert "They leave out patients that either run was trained on" in text
    text = write_report([trained_on(first, *WORST_FIRST), second])[0].read_text()
    assert runs_table(text)[1]["difference"].endswith("3 patients, all trained on")
    assert "Only the mean of the others" in text


def test_marks_are_hollow_only_for_the_run_that_was_trained_on_the_patient(runs: list[Path], tmp_path: Path) -> None:
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in runs)
    text = write_report([trained_on(first, "7", "12"), trained_on(second, "7")])[0].read_text()
    assert text.count("fill-opacity: 0;") == 2 * 3  # two charts
    assert "Hollow marks: patients that the run's weights were trained on." in text


def test_charts_explain_crosses_and_patients_that_are_left_out(runs: list[Path], tmp_path: Path) -> None:
    crosses, left_out = "Crosses: DSC not defined", "Lesion size and DSC: without 1 patient that has no lesion."
    text = write_report([runs[0]], tmp_path / "page.html")[0].read_text()
    assert (crosses in text, left_out in text, "Hollow marks" in text) == (True, True, False)
    run = many_patients(runs[0], tmp_path / "many", 5)
    text = write_report([run])[0].read_text()
    assert (crosses in text, "Lesion size and DSC: without" in text) == (False, False)


def test_a_small_p_is_no_zero(runs: list[Path], tmp_path: Path) -> None:
    first, second = (many_patients(run, tmp_path / run.name, 30) for run in runs)
    scores = [replace(score, dsc=score.dsc + 0.01) for score in read_scores(second)]
    write_scores(second, scores)
    text = write_report([first, second], viewers=0)[0].read_text()
    assert runs_table(text)[1]["p"] == "&lt; 0.001"
    (value,) = re.findall(r'data-value="([^"]*)">&lt; 0.001', text)
    assert 0 < float(value) < 1e-6


def test_the_page_says_which_mask_the_reference_protocol_scores(runs: list[Path], tmp_path: Path) -> None:
    run = changed(shutil.copytree(runs[0], tmp_path / "run"), protocol="reference")
    assert "it can be of another component than the one shown" in write_report([run])[0].read_text()
    assert "another component" not in write_report([runs[0]], tmp_path / "page.html")[0].read_text()


def test_the_page_says_where_slices_are_shown_coarser(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Large slices" not in write_report([runs[0]], tmp_path / "page.html")[0].read_text()
    monkeypatch.setattr("pipeline.pages.viewer.MAX_SIDE_PX", 100)
    text = write_report([runs[0]], tmp_path / "page.html")[0].read_text()
    assert "Large slices are shown with fewer pixels; a pixel belongs to a mask if any of its voxels does." in text
    assert "For files that have none, such as those built of slices, it is assumed." in text


def test_all_patients_stand_open_where_all_were_trained_on(runs: list[Path], tmp_path: Path) -> None:
    run = trained_on(shutil.copytree(runs[0], tmp_path / "run"), *WORST_FIRST)
    text = write_report([run])[0].read_text()
    assert "The weights were trained on all of these patients" in text
    assert "Only the mean of the others" not in text
    assert text.count("<tr data-patient=") == 4
    assert 'id="trained-on"' not in text


def test_the_summary_of_an_earlier_version_tells_who_was_trained_on(runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    table = pd.read_csv(run / "scores.csv", dtype=str).drop(columns="seen")
    table.to_csv(run / "scores.csv", index=False)
    (read,) = read_runs([changed(run, seen_in_training=["12"])])
    assert {patient: score.seen for patient, score in read.by_patient.items()}["12"] is True
    assert [one.group for one in read.subtotals.values()] == ["trained on", "not known"]
    assert "as far as is known" in write_report([run])[0].read_text()


def test_many_patients_keep_the_page_small(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = many_patients(runs[0], tmp_path / "many", 110)
    page, notes = write_report([run], patients=["TEST_CS_0070_1996"])
    assert any("slices of 23 of 110 patients" in note for note in notes)
    shown = data_of(page)["order"]
    assert shown[:20] == [f"TEST_CS_{number:04d}_1996" for number in range(20)]
    assert shown[20:] == ["TEST_CS_0054_1996", "TEST_CS_0070_1996", "TEST_CS_0109_1996"]  # median, asked for, best
    assert 'class="wide tall"' in page.read_text()
    view = len(json.dumps(data_of(page)["patients"][shown[0]]))
    monkeypatch.setattr("pipeline.pages.page.MAX_SLICES_BYTES", int(3.5 * view))
    page, notes = write_report([run], patients=["TEST_CS_0070_1996"])
    assert data_of(page)["order"] == ["TEST_CS_0000_1996", "TEST_CS_0054_1996", "TEST_CS_0070_1996"]
    assert any("no slices of TEST_CS_0109_1996" in note and note.count("TEST_CS") == 3 for note in notes)
    monkeypatch.setattr("pipeline.pages.page.MAX_SLICES_BYTES", 1)
    page, _ = write_report([run], viewers=1)
    assert len(data_of(page)["order"]) == 1


def test_patients_that_were_not_trained_on_are_shown_first(runs: list[Path], tmp_path: Path) -> None:
    run = trained_on(shutil.copytree(runs[0], tmp_path / "run"), "7", "12")
    page, notes = write_report([run], viewers=1)
    assert data_of(page)["order"] == ["3"]
    assert any("first those that were not trained on" in note for note in notes)


def test_one_run_has_no_empty_column(runs: list[Path]) -> None:
    text = write_report([runs[1]])[0].read_text()
    for table in ("runs", "patients"):
        (html,) = re.findall(rf'<table id="{table}".*?</table>', text, re.DOTALL)
        body = html.partition("<tbody>")[2].split("</tr>")[:-1]
        cells = [[re.sub(r"<[^>]*>|\s", "", cell) for cell in re.split(r"</t[dh]>", row)[:-1]] for row in body]
        assert len(cells[0]) == html.count('<th scope="col"')
        assert all(any(column) for column in zip(*cells, strict=True))
    assert "difference" not in text.partition('<table id="runs"')[2].partition("</table>")[0]


def test_a_patient_that_no_run_has_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="--patients 99: in no RUN"):
        write_report(runs, tmp_path / "page.html", patients=["3", "99"])


def test_pictures_keep_the_shape_of_voxels(runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    affine = np.array([[0.0, -0.9, 0, 0], [-1.8, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])
    for path in [*run.glob("volumes/12_*"), *run.glob("masks/12_*")]:
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine)
        image.header.set_xyzt_units("mm")
        path.unlink()
        nib.save(image, path)
    views = data_of(write_report([run])[0])["patients"]
    assert (views["12"]["aspect"], views["7"]["aspect"]) == (2.0, 1.0)


def test_runs_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    same = [shutil.copytree(run, tmp_path / folder / "scores") for run, folder in zip(runs, "ab", strict=True)]
    assert [run.name for run in read_runs(same)] == ["a/scores", "b/scores"]


def test_hostile_names_are_escaped(hostile: Path) -> None:
    text = hostile.read_text()
    assert "<img src=x" not in text
    assert HOSTILE not in text
    assert "&lt;img src=x" in text
