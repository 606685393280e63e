"""docs/reference/files.md names the columns and keys that the program writes, all of them and no others."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipeline.cohort.pseudonyms import KEY_COLUMNS
from pipeline.features.measuring import ASSOCIATION_COLUMNS, SHAPE_COLUMNS
from pipeline.model.packing import pack_bundle
from pipeline.model.predictions import Prediction, predict_volumes
from pipeline.scoring.curves import TAGS
from pipeline.scoring.results import OPTIONAL_COLUMNS, SCORE_COLUMNS, SEEN_COLUMN, SLICE_COLUMNS
from tests.conftest import BASIC, ROOT, evaluated
from tests.tools.pages import column, tables

PAGE = ROOT / "docs" / "reference" / "files.md"
SCHEMA: dict[str, Any] = json.loads((ROOT / "data_manifest" / "schema.json").read_bytes())


def names(heading: str) -> list[str]:
    """The names in the first cells of a table, of which a cell may hold several."""
    return [name for cell in column(PAGE, heading) for name in cell.replace("`", "").split(", ")]


def keys(path: Path) -> set[str]:
    """The keys of a JSON file."""
    return set(json.loads(path.read_bytes()))


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("column of scores.csv", (*SCORE_COLUMNS, *OPTIONAL_COLUMNS, SEEN_COLUMN)),
        ("column of slices.csv", SLICE_COLUMNS),
        ("column of predictions.csv", tuple(field.name for field in fields(Prediction))),
        ("column of shape.csv", SHAPE_COLUMNS),
        ("column of the key", KEY_COLUMNS),
        ("tag", TAGS),
    ],
)
def test_columns_are_those_of_the_code(heading: str, columns: tuple[str, ...]) -> None:
    assert tuple(column(PAGE, heading)) == columns


def test_columns_of_associations_are_those_of_the_code() -> None:
    assert tuple(names("column of associations.csv")) == ASSOCIATION_COLUMNS


def test_columns_have_unit_and_say_when_they_are_empty() -> None:
    rows = [row for table in tables(PAGE) if "empty" in table[0] for row in table]
    columns = (*SCORE_COLUMNS, *OPTIONAL_COLUMNS, SEEN_COLUMN, *SLICE_COLUMNS, *SHAPE_COLUMNS)
    assert len(rows) == len(columns) + len(fields(Prediction))
    assert all(row["content"] and row["empty"] for row in rows)


@pytest.mark.parametrize(
    ("heading", "part"),
    [("key", SCHEMA), ("key of an item", SCHEMA["$defs"]["item"]), ("key of a patient", SCHEMA["$defs"]["patient"])],
    ids=["manifest", "item", "patient"],
)
def test_manifest_is_that_of_the_schema(heading: str, part: dict[str, Any]) -> None:
    assert sorted(names(heading)) == sorted(part["properties"])


def test_files_of_a_training(trained: tuple[Path, Path]) -> None:
    _, folder = trained
    assert {*names("key of the record")} - {"init"} == keys(folder / "training.json")
    assert {*names("key of the run")} == keys(folder / "run.json")
    _all_named(folder, "file of a training")


def test_files_of_an_evaluation(trained: tuple[Path, Path], manifest: Path, tmp_path: Path) -> None:
    summary = evaluated(trained, manifest, tmp_path, "--tta", "--uncertainty", "--per-slice", "--figures")
    assert sorted(names("key of the summary")) == sorted(summary)
    (bundles,) = (row for table in tables(PAGE) for row in table if row.get("key of the summary") == "`bundles`")
    assert re.findall(r"`(\w+)`", bundles["content"]) == [*summary["bundles"][0]]
    _all_named(tmp_path, "file of an evaluation")


def test_files_of_a_prediction(phantoms: Path, tmp_path: Path) -> None:
    predict_volumes(phantoms, BASIC, tmp_path, flips=True, uncertainty=True, probability=True)
    assert sorted(names("key of the predictions")) == sorted(keys(tmp_path / "predictions.json"))
    header = (tmp_path / "predictions.csv").read_text().partition("\n")[0]
    assert header.split(",") == column(PAGE, "column of predictions.csv")
    _all_named(tmp_path, "file of a prediction")


def test_files_of_a_bundle(tmp_path: Path) -> None:
    packed = pack_bundle(BASIC, tmp_path)
    with zipfile.ZipFile(packed.path) as file:
        inside = {name.partition("/")[2] for name in file.namelist()}
    listed = set(names("file of a bundle"))
    assert {"scripts/" if name.startswith("scripts/") else name for name in inside} == listed


def _all_named(folder: Path, heading: str) -> None:
    """Every file of a folder is one that the page lists."""
    patterns = [
        re.escape(name).replace("NAME", "[^/]+").replace("ID", "[^/]+").replace(r"\*", "[^/]+").replace("_N", r"_\d+")
        + (".*" if name.endswith("/") else "")
        for name in names(heading)
    ]
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = [name.removeprefix("log/") for name in found]  # output_dir of the tests' training
    assert found
    assert [name for name in found if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
