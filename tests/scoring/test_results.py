"""Scores and summaries are read as they were written. Damaged or unfinished ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.metrics import score_volume, slice_counts
from pipeline.scoring.results import (
    Subtotal,
    read_scores,
    read_summary,
    scores_table,
    subtotals,
    write_scores,
    write_slices,
    write_summary,
)
from pipeline.scoring.statistics import summarise
from tests.scoring.boxes import TRUTH, box

SCORES = [
    score_volume("whole", TRUTH, TRUTH),
    score_volume("NA", 0 * TRUTH, 0 * TRUTH),
    score_volume('false, "alarm"', TRUTH, 0 * TRUTH),
    score_volume("007", box((3, 7), (2, 6), (2, 4)), TRUTH),
]
COLUMNS = "patient,dsc,hd95_px,sensitivity,precision,tp_voxels,fp_voxels,fn_voxels,lesion_voxels"
MORE = ",volume_difference,seen"
PROVENANCE: dict[str, Any] = {
    "command": "python -m pipeline.evaluate",
    "seed": 1,
    "manifest_sha256": "cd" * 32,
    "bundles": [{"name": "basic_unet", "weights_sha256": "ab" * 32}],
    "protocol": "native",
    "tta": False,
    "split": "validation",
    "seen_in_training": [],
}
SUMMARY = {**PROVENANCE, **summarise(SCORES, 1)}


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_scores(tmp_path / "new", SCORES)
    assert read_scores(tmp_path / "new") == SCORES
    head, first, second, *_ = (tmp_path / "new" / "scores.csv").read_text().splitlines()
    assert head == COLUMNS + MORE
    assert first == "whole,1.0,0.0,1.0,1.0,32,0,0,32,0.0,"
    assert second == "NA,,,,,0,0,0,0,,"  # not defined


def test_agreement_is_a_column_where_it_was_asked_for(tmp_path: Path) -> None:
    scores = [replace(SCORES[0], agreement=0.1 + 0.2), *SCORES[1:]]
    write_scores(tmp_path, scores)
    assert (tmp_path / "scores.csv").read_text().splitlines()[0].endswith(",volume_difference,agreement,seen")
    assert read_scores(str(tmp_path)) == scores


def test_figures_in_mm_are_columns_where_a_spacing_is_known(tmp_path: Path) -> None:
    known = score_volume("mm", box((3, 7), (2, 6), (2, 4)), TRUTH, (1.0, 2.0, 3.0))
    empty = score_volume("empty", 0 * TRUTH, 0 * TRUTH, (1.0, 2.0, 3.0))
    write_scores(tmp_path, [known, empty, SCORES[0]])
    head, first, second, third = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == f"{COLUMNS},hd95_mm,surface_dice_2mm,volume_difference,seen"
    assert first.endswith(",32,1.0,1.0,0.0,")
    assert second == "empty,,,,,0,0,0,0,,,,"
    assert third.endswith(",32,,,0.0,")
    assert read_scores(tmp_path) == [known, empty, SCORES[0]]
    table = scores_table([known, empty], summarise([known, empty])).splitlines()
    assert table[0].split() == ["patient", "DSC", "HD95", "in", "mm", "S.DSC", "sens.", "prec.", "TP", "FP", "FN"]
    assert table[2].split()[:5] == ["mm", "0.7500", "1.00", "1.00", "1.0000"]
    assert table[1].split()[:5] == ["empty", "-", "-", "-", "-"]


def test_scores_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(f"{COLUMNS}\nA,1.0,0.0,1.0,1.0,1,0,0,1\n")
    (score,) = read_scores(tmp_path)
    assert (score.dsc, score.volume_difference, score.agreement, score.seen) == (1.0, None, None, None)


def test_patients_that_were_trained_on_are_told_apart(tmp_path: Path) -> None:
    scores = [replace(score, seen=seen) for score, seen in zip(SCORES, (True, True, False, None), strict=True)]
    write_scores(tmp_path, scores)
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert [row.rpartition(",")[2] for row in rows] == ["seen", "true", "true", "false", ""]
    assert read_scores(tmp_path) == scores
    assert subtotals(scores) == [
        Subtotal("not trained on", 1, 1, 0.0),
        Subtotal("trained on", 2, 1, 1.0),
        Subtotal("not known", 1, 1, 0.75),
    ]
    head, *table = scores_table(scores, SUMMARY).splitlines()
    assert head.endswith("FN  trained on")
    assert [row.split()[-1] for row in table[:4]] == ["yes", "no", "-", "yes"]
    assert table[5:8] == [
        "not trained on: mean DSC 0.0000, 1 of 1 volumes",
        "trained on: mean DSC 1.0000, 1 of 2 volumes",
        "not known: mean DSC 0.7500, 1 of 1 volumes",
    ]
    unseen = [replace(score, seen=False) for score in SCORES]
    assert scores_table(unseen, SUMMARY) == scores_table(SCORES, SUMMARY)


def test_another_word_for_seen_is_reported(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(f"{COLUMNS},seen\nA,1.0,0.0,1.0,1.0,1,0,0,1,maybe\n")
    with pytest.raises(PipelineError, match="no readable scores"):
        read_scores(tmp_path)


def test_slices_are_a_table_of_their_own(tmp_path: Path) -> None:
    counts = slice_counts(box((3, 7), (2, 6), (2, 4)), TRUTH)
    write_slices(tmp_path, [replace(SCORES[3], slices=counts), replace(SCORES[0], slices=counts[:1])])
    rows = (tmp_path / "slices.csv").read_text().splitlines()
    assert rows[0] == "patient,slice,tp,fp,fn,dsc"
    assert rows[1:4] == ["007,1,0,0,0,", "007,2,0,0,0,", "007,3,12,4,4,0.75"]  # an empty cell if the DSC is not defined
    assert rows[-1] == "whole,1,0,0,0,"
    assert len(rows) == 1 + TRUTH.shape[2] + 1
    write_slices(tmp_path, SCORES)
    assert not (tmp_path / "slices.csv").exists()


def test_reliability_is_no_column(tmp_path: Path) -> None:
    write_scores(tmp_path, [replace(SCORES[0], reliability=((1, 0.5, 1),) * 10)])
    assert read_scores(tmp_path) == SCORES[:1]


@pytest.mark.filterwarnings("ignore::pandas.errors.ParserWarning")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "patient,dsc\nA,0.5\n",
        f"{COLUMNS}\nA,high,1,1,1,1,0,0,1\n",
        f"{COLUMNS}\nA,1.0,0.0,1.0\n",
        f"{COLUMNS}\nA,B,1.0,0.0,1.0,1.0,1,0,0,1\n",
        b"patient,dsc\n\xff,1\n",
    ],
    ids=["empty", "few columns", "no number", "cut row", "a cell too many", "no text"],
)
def test_damaged_scores_are_reported(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "scores.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PipelineError, match=r"scores\.csv: no readable scores .* Write them with lgg-flair evaluate"):
        read_scores(tmp_path)


def test_missing_scores_are_reported(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no readable scores"):
        read_scores(tmp_path)


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_summary(tmp_path / "new", SUMMARY)
    assert read_summary(tmp_path / "new") == read_summary(str(tmp_path / "new")) == SUMMARY


def test_a_summary_without_statistics_is_of_an_evaluation_that_did_not_end(tmp_path: Path) -> None:
    write_summary(tmp_path, PROVENANCE)
    with pytest.raises(PipelineError, match="did not finish"):
        read_summary(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "1"], ids=["missing", "cut", "number"])
def test_an_unreadable_summary_is_reported(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(PipelineError, match=r"summary\.json: no readable summary"):
        read_summary(tmp_path)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    kept = {key: value for key, value in SUMMARY.items() if key not in ("protocol", "dsc_mean")}
    write_summary(tmp_path, kept)
    with pytest.raises(PipelineError, match="protocol, dsc_mean missing"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("protocol", 1),
        ("manifest_sha256", None),
        ("seen_in_training", "A"),
        ("dsc_mean_95", [0.5]),
        ("bundles", {}),
        ("bundles", [{"name": "basic_unet"}]),
        ("bundles", [{"weights_sha256": "ab"}]),
    ],
)
def test_values_of_another_form_are_named(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, key: value}))
    with pytest.raises(PipelineError, match=f"{key} missing or changed"):
        read_summary(tmp_path)


def test_table_has_the_worst_first_and_the_mean_below() -> None:
    head, *rows = scores_table(SCORES, SUMMARY).splitlines()
    assert head.split() == ["patient", "DSC", "HD95", "sens.", "prec.", "TP", "FP", "FN"]
    assert [row[:14].rstrip() for row in rows[:4]] == ["NA", 'false, "alarm"', "007", "whole"]
    assert rows[0].split() == ["NA", "-", "-", "-", "-", "0", "0", "0"]
    assert rows[2].split() == ["007", "0.7500", "1.00", "0.7500", "0.7500", "24", "8", "8"]
    low, high = SUMMARY["dsc_mean_95"]
    assert rows[4:] == [
        f"mean DSC 0.5833 (95 % interval {low:.4f} to {high:.4f}), median 0.7500, 3 of 4 volumes",
        "DSC not defined (no lesion, none predicted): NA",
    ]


def test_table_of_nothing_scored_has_no_mean() -> None:
    empty = SCORES[1:2]
    assert scores_table(empty, summarise(empty)).splitlines()[2:] == ["DSC not defined (no lesion, none predicted): NA"]
