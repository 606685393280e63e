"""Scores and summaries come back from their files as they were written; damaged or unfinished ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.metrics import score_volume
from pipeline.scoring.results import read_scores, read_summary, scores_table, write_scores, write_summary
from pipeline.scoring.statistics import summarise
from tests.scoring.boxes import TRUTH, box

SCORES = [
    score_volume("whole", TRUTH, TRUTH),
    score_volume("NA", 0 * TRUTH, 0 * TRUTH),
    score_volume('false, "alarm"', TRUTH, 0 * TRUTH),
    score_volume("007", box((3, 7), (2, 6), (2, 4)), TRUTH),
]
COLUMNS = "patient,dsc,hd95_px,sensitivity,precision,tp_voxels,fp_voxels,fn_voxels,lesion_voxels"
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
    assert head == COLUMNS
    assert first == "whole,1.0,0.0,1.0,1.0,32,0,0,32"
    assert second == "NA,,,,,0,0,0,0"  # not defined


def test_agreement_is_a_column_where_it_was_asked_for(tmp_path: Path) -> None:
    scores = [replace(SCORES[0], agreement=0.1 + 0.2), *SCORES[1:]]
    write_scores(tmp_path, scores)
    assert (tmp_path / "scores.csv").read_text().splitlines()[0].endswith(",lesion_voxels,agreement")
    assert read_scores(str(tmp_path)) == scores


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
def test_damaged_scores_are_told(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "scores.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PipelineError, match=r"scores\.csv: no readable scores .* Write them by pipeline\.evaluate"):
        read_scores(tmp_path)


def test_missing_scores_are_told(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no readable scores"):
        read_scores(tmp_path)


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_summary(tmp_path / "new", SUMMARY)
    assert read_summary(tmp_path / "new") == read_summary(str(tmp_path / "new")) == SUMMARY


def test_a_summary_without_statistics_is_of_an_evaluation_that_did_not_end(tmp_path: Path) -> None:
    write_summary(tmp_path, PROVENANCE)
    with pytest.raises(PipelineError, match="did not come to its end"):
        read_summary(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "1"], ids=["missing", "cut", "number"])
def test_an_unreadable_summary_is_told(tmp_path: Path, content: str | None) -> None:
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
    with pytest.raises(PipelineError, match=f"{key} missing, or of another form"):
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
