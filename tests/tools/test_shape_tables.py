"""Tables of shape features come from a run of ``lgg-flair shape``, and hold no group of a patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from tools import results
from tools.shape_tables import CHARTS, KINDS, SHAPES, SUBTYPES, main


def pair(feature: str, column: str, p: float) -> dict[str, Any]:
    tests = {"fisher_p": p, "fisher_q": 2 * p, "cramers_v": 0.5, "kruskal_p": 0.5, "kruskal_q": 0.6}
    return {
        **{"feature": feature, "column": column, "patients": 9, "epsilon_squared": 0.1, **tests},
        **{"groups": {"secret": 9}, "medians": {"secret": 1.0}, "auc": {"secret": 0.5}},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run."""
    pairs = [pair("margin_fluctuation", column, 0.00001 + place / 50) for place, column in enumerate(SUBTYPES)]
    agreement = [
        {"feature": name, "patients": 9, "spearman": 0.5, "bias": -1234.5678, "lower": -2000.0, "upper": 0.04321}
        for name in ("margin_fluctuation", "voxels", "largest_diameter_px")
    ]
    shapes = [
        {"patient": f"p{number}", "mask": kind, "voxels": 10 * number, "bounding_ellipsoid_volume_ratio": number / 9}
        for number in range(1, 9)
        for kind in KINDS
    ]
    shapes[-1]["bounding_ellipsoid_volume_ratio"] = None  # an empty mask
    agreement[0]["spearman"] = None
    fewer = [{**one, "patients": 8} for one in pairs[:-1]]
    run = {"patients": 10, "matched": 9, "agreement": agreement, "associations": {"true": pairs, "predicted": fewer}}
    run["shapes"] = shapes
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "shape.json").write_text(json.dumps(run))
    return tmp_path / "run"


def test_tables_are_written_into_the_page(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "docs" / "results").mkdir(parents=True)
    (root / results.TABLE).write_text(",".join(results.COLUMNS) + "\n")
    (root / results.PROVENANCE).write_text("{}")
    page = root / "docs" / "page.md"
    names = ("associations", "agreement")
    page.write_text("\n".join(f"<!-- shape {name} -->\nold\n<!-- end -->" for name in names))
    assert main([str(folder), "--root", str(root)]) == 0
    assert "secret" not in (root / SHAPES).read_text()
    assert results.main(["--root", str(root), "--write"]) == 0
    assert all((root / path).read_text().lstrip().startswith("<svg") for path in CHARTS.values())
    lines = page.read_text().splitlines()
    first = "**0.000010** (0.000020)"
    assert f"| margin fluctuation | RNASeq | 9, 8 | {first} | {first} | 0.50 (0.60) | 0.50 (0.60) |" in lines
    assert "| | methylation | 9, 8 | **0.020** (0.040) | **0.020** (0.040) | 0.50 (0.60) | 0.50 (0.60) |" in lines
    assert "| | microRNA | 9, 8 | 0.040 (0.080) | 0.040 (0.080) | 0.50 (0.60) | 0.50 (0.60) |" in lines
    assert "| | cluster of clusters | 9, 0 | 0.12 (0.24) | - | 0.50 (0.60) | - |" in lines
    assert "| margin fluctuation | 9 | - | -1234.568 | -2000.000 to 0.043 |" in lines
    assert "| voxels | 9 | 0.500 | -1,235 | -2,000 to 0 |" in lines
    assert "| largest diameter, pixels | 9 | 0.500 | -1234.6 | -2000.0 to 0.0 |" in lines
    page.write_text(page.read_text().replace("agreement -->", "other -->"))
    with pytest.raises(PipelineError, match="shape other -->: no such table"):
        results.main(["--root", str(root), "--write"])


def test_a_run_without_associations_is_refused(folder: Path) -> None:
    (folder / "shape.json").write_text("{}")
    with pytest.raises(PipelineError, match="Measure an evaluation with --clinical"):
        main([str(folder)])
