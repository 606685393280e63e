"""The command that measures shapes: what it prints, the page, and one document for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import shape
from tests.features.test_measuring import clinical
from tests.pages.evaluations import make_run


def test_the_summary_names_counts_agreement_and_associations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(tmp_path / "scores", 1), tmp_path / "out"
    options = ["--clinical", str(clinical(tmp_path / "data.csv")), "--features", "voxels"]
    assert shape.main([str(run), "-o", str(out), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "masks: 4 predicted, 4 true; 2 empty, without features"
    assert lines[1].startswith("patients without a voxel size: 4; ")
    assert "voxels: rank correlation of predicted and true 1.000 (4 patients)" in lines
    assert "clinical table: 4 of 4 patients found, columns tested: 1, skipped: 0" in lines
    assert any(line.startswith("true: voxels and subtype: Fisher p ") for line in lines)
    assert lines[-1].endswith(f"Open in a browser: {out / 'shape.html'}")
    assert {path.name for path in out.iterdir()} >= {"shape.csv", "shape.json", "shape.html", "associations.csv"}


def test_scripts_get_one_document(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shape.main([str(manifest), "-o", str(tmp_path / "out"), "--spacing", "1", "1", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["masks"] == {"true": 8}
    assert document["associations"] == {}
