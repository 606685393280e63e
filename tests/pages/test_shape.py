"""The page of shape features: every patient, every tested pair, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.features.measuring import measure_shapes
from pipeline.pages.shape import write_shape_page
from tests.features.test_measuring import clinical
from tests.pages.evaluations import HOSTILE, PATIENTS, make_run


def test_the_page_has_tables_and_charts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "scores", 1)
    path = clinical(tmp_path / "data.csv")
    path.write_text(path.read_text().replace("subtype", '"' + HOSTILE.replace('"', '""') + '"'))
    result = measure_shapes(run, tmp_path / "out", clinical=path, draw=lambda found: write_shape_page(found, tmp_path))
    text = (tmp_path / "shape.html").read_text()
    assert HOSTILE not in text
    assert "&lt;/script&gt;" in text
    assert text.count("<svg") == 2 * 3 + len(result.agreements)
    for patient in PATIENTS:
        assert len(re.findall(rf"<td>{patient}</td>", text)) == 2
    assert "features in mm are empty" in text
    assert not re.search(r"(src|href)=\"http", text)


def test_the_page_without_a_table_has_no_associations(manifest: Path, tmp_path: Path) -> None:
    page = write_shape_page(measure_shapes(manifest, tmp_path / "out"), tmp_path / "out")
    text = page.read_text()
    assert "<h2>Associations" not in text
    assert "<h2>Predicted and true" not in text
    assert "true masks" in text
