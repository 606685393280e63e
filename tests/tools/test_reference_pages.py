"""docs/reference: a section for each command and an entry for each public name."""

from __future__ import annotations

import re

import pipeline
from pipeline.__main__ import COMMANDS
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "reference"


def test_every_command_has_its_section_with_its_help() -> None:
    text = (PAGES / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r'^## ([a-z]+)\n(?:(?!## ).*\n)*?show\("\1"\)$', text, re.MULTILINE) == [*COMMANDS]
    of_json = text.partition("### What `--json` prints")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", of_json, re.MULTILINE)
    assert {name.split()[0] for row in rows for name in re.findall("`(.*?)`", row)} == {*COMMANDS}


def test_every_public_name_is_on_the_page() -> None:
    text = (PAGES / "python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: pipeline\.(\w+)$", text, re.MULTILINE)) == sorted(pipeline.__all__)
