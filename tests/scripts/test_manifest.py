"""Scripts that read a manifest hold it and its volumes against the hashes they were built with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.scripts.manifest import is_pseudonymised, refuse_changed_volumes


def test_a_training_holds_the_manifest_against_its_hash(manifest: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(manifest, tmp_path / "manifest")
    file = copy / "manifest.json"
    content = json.loads(file.read_text())
    items = [{**item, **{kind: copy / item[kind] for kind in ("image", "label")}} for item in content["training"]]
    refuse_changed_volumes(str(copy), items)
    with pytest.raises(PipelineError, match="knows nothing of the patient of"):
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
