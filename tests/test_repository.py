"""The files for those who cite the project, contribute to it, or report something: complete, and true of the tree."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from tests.conftest import ROOT

GUIDES = ("CONTRIBUTING.md", "SECURITY.md")
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
CFF_KEYS = {
    *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords"),
    *("license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact"),
    *("repository-code", "title", "type", "url", "version"),
}
"""All keys of a citation file, version 1.2.0; other keys make it invalid."""


def citation() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "CITATION.cff").read_text()))


def test_every_file_has_the_version_of_the_package() -> None:
    assert citation()["version"] == pipeline.__version__
    released = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == pipeline.__version__
    metadata = yaml.safe_load((ROOT / "bundles" / "template" / "metadata.yaml").read_text())
    assert metadata["version"] == next(iter(metadata["changelog"])) == pipeline.__version__


def test_the_citation_is_complete_and_has_known_keys_alone() -> None:
    found = citation()
    assert found["cff-version"] == "1.2.0"
    assert {"authors", "cff-version", "message", "title"} <= set(found) <= CFF_KEYS
    assert found["type"] == "software"
    assert found["license"] == "Apache-2.0"
    assert isinstance(found.get("date-released", date.today()), date)
    metadata = yaml.safe_load((ROOT / "bundles" / "template" / "metadata.yaml").read_text())
    assert found["authors"] == [{"name": metadata["authors"]}]
    for work in found["references"]:
        assert {"type", "title", "authors", "year"} <= set(work)
        assert work["type"] in ("article", "data")
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
        assert re.fullmatch(r"10\.\d{4,9}/\S+", work.get("doi", "10.1000/none"))  # a DOI, no address


def test_the_citation_names_what_the_bundles_ask_to_cite() -> None:
    works = citation()["references"]
    articles = {(work["authors"][0]["family-names"], work["year"]): work for work in works if work["type"] == "article"}
    assert set(articles) == {("Buda", 2019), ("Mazurowski", 2017), ("Cardoso", 2022)}
    assert articles["Cardoso", 2022]["doi"].endswith("2211.02701")
    (data,) = [work for work in works if work["type"] == "data"]
    assert data["license"] == "CC-BY-NC-SA-4.0"
    metadata = yaml.safe_load((ROOT / "bundles" / "template" / "metadata.yaml").read_text())
    cited = " ".join(metadata["references"])
    for name, year in (("Buda", 2019), ("Mazurowski", 2017)):
        assert re.search(rf"{name}.*\b{articles[name, year]['volume']} \({year}\)", cited)


@pytest.mark.parametrize("name", [*GUIDES, ".github/PULL_REQUEST_TEMPLATE.md"])
def test_guides_name_targets_that_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)`", (ROOT / name).read_text()))
    assert named
    assert named <= targets


@pytest.mark.parametrize("name", [*GUIDES, ".github/PULL_REQUEST_TEMPLATE.md"])
def test_guides_name_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    named = re.findall(r"^(\S+/)(?:, (\S+/))?", tree[1], re.MULTILINE) if tree else []
    paths = {path for line in named for path in line if path}
    paths |= {path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if not path.startswith("/")}
    paths |= set(re.findall(r"`(\w+\.(?:md|cff|txt|yml))`", text))
    made = ("A/", "NAME", "report.html", "predictions.html", "figures/", "volumes/", "configs/", "scripts/")
    kept = {path for path in paths if not any(part in path for part in ("NAME", "A/")) and path not in made}
    assert len(kept) > 1
    assert [path for path in sorted(kept) if not (ROOT / path).exists()] == []


def test_guides_name_options_and_names_that_exist() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    text = "\n".join((ROOT / name).read_text() for name in GUIDES)
    options = set(re.findall(r"`(--[a-z][a-z-]+)(?![\w-])", text))
    assert {"--trust", "--pseudonymise", "--dicom-seg"} <= options
    assert [option for option in sorted(options) if f'"{option}"' not in code] == []
    for name in ("VOLUME_SUFFIXES", "OPTIONAL_COLUMNS", "read_volume", "score_volume", "VolumeScore"):
        assert f"`{name}`" in text
        assert re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE), name


def test_security_states_the_limit_of_zips_as_it_is() -> None:
    from pipeline.imaging.dicom import MAX_ZIP_BYTES
    from pipeline.scripts.volumes import MAX_VALUES

    text = (ROOT / "SECURITY.md").read_text()
    assert f"more than {MAX_ZIP_BYTES >> 30} GB" in text
    assert f"more than 2^{MAX_VALUES.bit_length() - 1} values" in text


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 120


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_are_what_github_reads(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content) <= {"name", "description", "title", "labels", "body"}
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    for field in content["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert set(field) <= {"type", "id", "attributes", "validations"}
        needed = {"markdown": {"value"}, "dropdown": {"label", "options"}, "checkboxes": {"label", "options"}}
        assert needed.get(field["type"], {"label"}) <= set(field["attributes"])
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_ask_that_no_patient_is_shown(form: Path) -> None:
    boxes = [field for field in yaml.safe_load(form.read_text())["body"] if field["type"] == "checkboxes"]
    (option,) = boxes[-1]["attributes"]["options"]
    assert option["required"] is True
    assert "patient" in option["label"]


def test_there_are_forms_for_bugs_and_features() -> None:
    assert {form.stem for form in FORMS} == {"bug_report", "feature_request"}
    config = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text())
    assert isinstance(config["blank_issues_enabled"], bool)
