"""Scripts that read a manifest hold it against the hashes it was built with, and know what channels it tells."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cohort.inputs import find_inputs
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.scripts.manifest import (
    CHANNELS,
    channel_role,
    image_items,
    is_pseudonymised,
    lists_images,
    person,
    refuse_changed_volumes,
    section_items,
    training_items,
    validation_items,
)

IN_ORDER = "FLAIR alone, or pre-contrast T1, FLAIR and post-contrast T1 in this order"


def test_a_training_holds_the_manifest_against_its_hash(manifest: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(manifest, tmp_path / "manifest")
    file = copy / "manifest.json"
    content = json.loads(file.read_text())
    items = [{**item, **{kind: copy / item[kind] for kind in ("image", "label")}} for item in content["training"]]
    refuse_changed_volumes(str(copy), items)
    with pytest.raises(PipelineError, match="does not name the patient of"):
        refuse_changed_volumes(str(copy), [{**items[0], "patient": "TCGA_XX_0000"}])
    text = file.read_text()
    file.write_text(text.replace(content["patients"][items[0]["patient"]]["image_sha256"], "0" * 64))
    with pytest.raises(
        PipelineError, match=r"changed since it was built, its SHA-256 \w+ is not that in manifest.json"
    ):
        refuse_changed_volumes(str(copy), items)
    (copy / "manifest.json.sha256").unlink()
    with pytest.raises(PipelineError, match="changed since the manifest was built"):
        refuse_changed_volumes(str(copy), items)
    refuse_changed_volumes(str(tmp_path), items)  # no manifest: no hash is known


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"options": {"pseudonymised": True}}, True),
        ({"options": {"seed": 0}}, False),
        ({"options": ["pseudonymised"]}, False),  # of another program
        ({}, False),
    ],
)
def test_a_manifest_tells_whether_it_is_pseudonymised(content: Any, expected: bool) -> None:
    assert is_pseudonymised(content) is expected


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("FLAIR", "flair"),
        ("T2 FLAIR", "flair"),
        ("T1w", "pre"),
        ("t1gd", "post"),
        ("pre-contrast", "pre"),
        ("T2", None),
        ("T1-FLAIR", None),
    ],
)
def test_a_channels_name_tells_its_role(name: str, role: str | None) -> None:
    assert channel_role(name) == role


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "T1gd"}}, f"channels FLAIR, T1w, T1gd (expected {IN_ORDER})"),
        ({"channel_names": {"0": "T1", "1": "FLAIR"}}, f"channels T1, FLAIR (expected {IN_ORDER})"),
        ({"modality": {"0": "T1", "1": "FLAIR", "2": "T2"}}, f"channels T1, FLAIR, T2 (expected {IN_ORDER})"),
        ({"modality": {"1": "T1", "2": "FLAIR", "3": "T1gd"}}, f"channels T1, FLAIR, T1gd (expected {IN_ORDER})"),
        ({"modality": {"0": "MRI"}}, "no channel FLAIR (found MRI). Name it in the file"),
        ({"modality": "MRI"}, "channels MRI (expected numbers and names). Correct the file"),
        ({"modality": dict(enumerate(CHANNELS))}, ""),
        ({"channel_names": {"2": "T1ce", "0": "T1", "1": "T2-FLAIR"}}, ""),
        ({"modality": {"0": "FLAIR"}}, ""),
        ({"modality": {}}, ""),
        ({}, ""),
    ],
)
def test_a_datalist_of_other_channels_is_refused_by_all_who_read_it(tmp_path: Path, metadata: Any, fault: str) -> None:
    """By commands, and by configs that read its items or the volumes beside it."""
    pair = {"image": "p_image.nii.gz", "label": "p_label.nii.gz"}
    for name in pair.values():
        (tmp_path / name).touch()
    for name in ("manifest.json", "dataset.json"):
        for each in tmp_path.glob("*.json"):
            each.unlink()
        file = tmp_path / name
        file.write_text(json.dumps({**metadata, "test": [pair]}))
        ways = [
            lambda file=file: find_inputs([file], tmp_path / "out"),
            lambda file=file: read_manifest(file),
            lambda: image_items(str(tmp_path)),
            lambda: find_inputs([tmp_path], tmp_path / "out"),
            *([lambda: section_items(str(tmp_path), "test")] if name == "manifest.json" else []),
        ]
        for read in ways:
            if not fault:
                assert read()
                continue
            with pytest.raises(PipelineError, match=f"^{re.escape(f'{file}: {fault}')}") as error:
                read()
            assert "\n" not in str(error.value)


def test_a_datalist_lists_the_images_of_its_items_alone() -> None:
    content = {"training": [{"image": "volumes/a.nii.gz"}, "b.nii.gz"], "validation": [{"image": ["c.nii.gz"]}]}
    for name, expected in (("a", True), ("c", False), ("d", False)):
        assert lists_images(content, [{"image": f"/data/volumes/{name}.nii.gz"}]) == expected
    assert not lists_images({}, [])


def test_exams_of_a_person_are_known_in_any_case() -> None:
    assert {person(name) for name in ("SUB-01_SES-1", "SUB-01_SES-2")} == {"SUB-01"}
    one = ("TCGA_CS_4941_19960909", "TCGA-CS-4941_1996.09.09", "TCGA-CS-4941", "tcga-cs-4941-01", "TCGA_CS_4941")
    assert {person(name) for name in one} == {"TCGA_CS_4941"}
    assert person("TCGA_CS_49411") == "TCGA_CS_49411"
    assert person("sub-01") == "sub-01"


@pytest.mark.parametrize(
    "item",
    [
        {"image": ["t1.nii.gz", "flair.nii.gz", "t1ce.nii.gz"], "label": "seg.nii.gz"},
        {"image": "flair.nii.gz"},
        {"image": "flair.nii.gz", "label": ["a.nii.gz", "b.nii.gz"]},
        "flair.nii.gz",
    ],
)
def test_an_item_has_one_image_and_one_label(tmp_path: Path, item: Any) -> None:
    sections = ("training", "validation", "test")
    (tmp_path / "manifest.json").write_text(json.dumps({section: [item] for section in sections}))
    for read, section in (
        (lambda: training_items(str(tmp_path)), "training"),
        (lambda: validation_items(str(tmp_path)), "validation"),
        (lambda: training_items(str(tmp_path), fold=0), "training"),
        (lambda: section_items(str(tmp_path), "test"), "test"),
    ):
        with pytest.raises(
            PipelineError, match=rf"manifest.json: .* in '{section}' \(expected an image, .*Build"
        ) as error:
            read()
        assert "\n" not in str(error.value)
    (tmp_path / "a_image.nii.gz").touch()
    assert len(image_items(str(tmp_path))) == 1
