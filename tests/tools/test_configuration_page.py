"""docs/reference/configuration.md lists every setting of the configs, with the defaults and ranges that hold."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
import yaml

from pipeline.scripts.config import SETTINGS
from tests.conftest import BASIC, ROOT
from tests.tools.pages import column, tables

PAGE = ROOT / "docs" / "reference" / "configuration.md"
CONFIGS = {"T": "train", "E": "evaluate", "I": "inference"}
NOT_CHECKED = {"device", "split", "secondary"}
"""Settings that ``SETTINGS`` says nothing of."""
WORDS = {
    "`models/` of the bundle": "$@bundle_root + '/models'",
    "`eval/` of the bundle": "$@bundle_root + '/eval'",
    "`model.pt` in `ckpt_dir`": "$@ckpt_dir + '/model.pt'",
    "CUDA where there is a GPU, else the CPU": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "on where the device has units for it": {"_target_": "scripts.machine.amp_by_default", "device": "@device"},
    "the value of `max_epochs`": "@max_epochs",
}
"""Defaults that are no plain values, as the page says them."""
RANGES = {
    "path": "a path; ./NAME for a name that is a number",
    "path or None": "a path; ./NAME for a name that is a number, or None",
    "whole number, 16 or more": "a whole number of 16 or more",
    "whole number, 1 or more": "a whole number of 1 or more",
    "whole number, 0 or more": "a whole number of 0 or more",
    "whole number, 0 or more, or None": "a whole number of 0 or more, or None",
    "number above 0": "a number above 0",
    "number, 0 or more": "a number of 0 or more",
    "number from 0 to 1": "a number from 0 to 1",
    "number between 0 and 1": "a number between 0 and 1",
    "two numbers from 0 to 100": "two numbers from 0 to 100, the lower one first",
    "True or False": "True or False",
}
"""Ranges as the page says them -> as the program says them."""


def config(name: str) -> dict[str, Any]:
    """A generated config of basic_unet."""
    content: dict[str, Any] = json.loads((BASIC / "configs" / f"{name}.json").read_bytes())
    return content


def value_of(content: Any, key: str) -> Any:
    """The value of ``train#trainer#max_epochs`` and the like."""
    for part in key.split("#"):
        content = content[part]
    return content


def has(content: Any, key: str) -> bool:
    """Whether a config has a key."""
    try:
        value_of(content, key)
    except KeyError:
        return False
    return True


def is_plain(value: Any) -> bool:
    """A number, a name, or a list of them; no expression, reference or component."""
    if isinstance(value, list):
        return bool(value) and all(is_plain(item) and not isinstance(item, list) for item in value)
    return not isinstance(value, dict) and not (isinstance(value, str) and value.startswith(("$", "@", "%")))


def settings_of(content: dict[str, Any]) -> set[str]:
    """The keys of a config that a user may set to a plain value."""
    plain = {key for key, value in content.items() if is_plain(value)}
    return plain | {key for key in (*SETTINGS, "device") if has(content, key)}


def documented() -> dict[str, dict[str, str]]:
    """Key -> its row on the page."""
    rows = [row for table in tables(PAGE) if [*table[0]][:2] == ["key", "default"] for row in table]
    assert len(rows) == len({row["key"] for row in rows}), "a key stands twice"
    return {row["key"].strip("`"): row for row in rows}


@pytest.mark.parametrize("letter", CONFIGS)
def test_every_setting_and_no_other(letter: str) -> None:
    of_page = {key for key, row in documented().items() if letter in row["config"].split()}
    assert of_page == settings_of(config(CONFIGS[letter]))


@pytest.mark.parametrize("key", documented())
def test_defaults(key: str) -> None:
    row = documented()[key]
    default = WORDS[row["default"]] if row["default"] in WORDS else ast.literal_eval(row["default"].strip("`"))
    for letter in row["config"].split():
        found = value_of(config(CONFIGS[letter]), key)
        assert found == default
        assert isinstance(found, bool) == isinstance(default, bool)


@pytest.mark.parametrize("key", sorted(documented().keys() - NOT_CHECKED))
def test_ranges(key: str) -> None:
    assert SETTINGS[key].expected.removesuffix(", capitalised as in Python") == RANGES[documented()[key]["range"]]


def test_sections_are_in_the_configs_named() -> None:
    rows = [row for table in tables(PAGE) if "section" in table[0] for row in table]
    assert rows
    for row in rows:
        section = row["section"].strip("`")
        assert [letter for letter in CONFIGS if has(config(CONFIGS[letter]), section)] == row["config"].split(), section


def test_recipes() -> None:
    (table,) = (table for table in tables(PAGE) if "recipe" in table[0])
    of_page = {
        row["recipe"].strip("`"): {
            "max_epochs": int(row["epochs"]),
            "steps_per_epoch": int(row["steps per epoch"]),
            "batch_size": int(row["batch size"]),
            "val_interval": int(row["validation every"].removesuffix(" epochs")),
            "image_size": 192,
        }
        for row in table
    }
    recipes = {path.stem: yaml.safe_load(path.read_bytes()) for path in (ROOT / "recipes").glob("*.yaml")}
    assert sorted(of_page) == sorted(recipes)
    for name, row in of_page.items():
        assert row == {key: recipes[name][key] for key in row}, name


def test_experiments() -> None:
    assert sorted(column(PAGE, "experiment")) == sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
