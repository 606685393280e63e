"""Helpers for several tests: folders of slices, and builds whose counts agree with the folder."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.cohort.building import BuildResult, build_manifest
from pipeline.errors import PipelineError
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "data_manifest" / "schema.json").read_text())
SIDE = 32
"""Height and width of a slice in pixels."""
A, B, C = "TCGA_CS_0001_19990101", "TCGA_CS_0002_19990102", "TCGA_HT_0003_19990103"
"""Patients of ``three_patients``: three slices each, 18 files in all."""
SPLIT = {"split": "random", "validation_fraction": 0.3}
"""One of the three patients validates."""


def seed_of(name: str, number: int) -> int:
    """Seed of the image that ``add_patient`` writes."""
    return zlib.crc32(f"{name} {number}".encode())


def image(seed: int = 0, height: int = SIDE, width: int = SIDE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 255, (height, width, 3)).astype(np.uint8)


def mask(positive: int = 255, height: int = SIDE, width: int = SIDE) -> npt.NDArray[np.uint8]:
    """A mask with a lesion of 15 pixels."""
    array = np.zeros((height, width), np.uint8)
    array[3:6, 4:9] = positive
    return array


def encoded(array: npt.NDArray[Any], **options: Any) -> bytes:
    """The content of a TIFF file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def write(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(array))


def add_patient(root: Path, name: str, numbers: Any = (1, 2, 3), positive: int = 255) -> None:
    for number in numbers:
        write(root / name / f"{name}_{number}.tif", image(seed_of(name, number)))
        write(root / name / f"{name}_{number}_mask.tif", mask(positive))


def three_patients(folder: Path) -> Path:
    for name in (A, B, C):
        add_patient(folder, name)
    return folder


def tree(folder: Path) -> dict[str, Any]:
    """Time and content of all files in a folder and its subfolders."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def files_below(root: Path) -> int:
    """All files in a folder, and links to folders."""
    return sum(
        len(files) + sum((Path(folder) / name).is_symlink() for name in folders)
        for folder, folders, files in os.walk(root)
    )


class Counts:
    """Found, used, skipped and refused files of a run, the sum checked, and what was found compared with the folder.

    Args:
        line: ``files: 18 found = 18 used + 0 skipped + 0 refused``.
        root: The folder.
    """

    def __init__(self, line: str, root: Path) -> None:
        assert line.startswith("files: ")
        self.found, self.used, self.skipped, self.refused = (int(word) for word in line.split() if word.isdigit())
        assert self.found == self.used + self.skipped + self.refused
        assert self.found == files_below(root)


class Built(Counts):
    """A new manifest, checked against its schema and the folder."""

    def __init__(self, result: BuildResult, messages: tuple[str, ...], root: Path, out: Path) -> None:
        self.manifest, self.is_new, self.messages = result.content, result.is_new, messages
        assert json.loads((out / "manifest.json").read_bytes()) == self.manifest
        counts = self.manifest["counts"]
        super().__init__("files: {found} found = {used} + {skipped} + {refused}".format(**counts), root)
        check(self.manifest)

    def warnings(self, patient: str) -> str:
        return " | ".join(self.manifest["patients"][patient]["warnings"])


def check(content: dict[str, Any]) -> None:
    """Check that schema, counts and lists of a manifest agree."""
    jsonschema.validate(content, SCHEMA)
    counts = content["counts"]
    assert counts["found"] == counts["used"] + counts["skipped"] + counts["refused"]
    assert counts["used"] == sum(len(info["sources"]) for info in content["patients"].values())
    assert (counts["skipped"], counts["refused"]) == (len(content["skipped"]), len(content["refused"]))
    listed = [item["patient"] for section in ("training", "validation", "test") for item in content[section]]
    assert sorted(listed) == sorted(content["patients"])
    assert content["numTraining"] == len(content["training"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of three patients."""
    return three_patients(tmp_path / "kaggle_3m")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for a manifest, which does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def build(root: Path, out: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Built]:
    """Build the folder's manifest, by default with one patient of three in validation."""

    def run(**options: Any) -> Built:
        caplog.clear()
        result = build_manifest(root, out, **{**SPLIT, **options})
        return Built(result, tuple(caplog.messages), root, out)

    return run


@pytest.fixture
def refused(root: Path, out: Path) -> Callable[..., Counts]:
    """A build that must fail with all of these words and one line of counts, and must change no file."""

    def run(*parts: str, **options: Any) -> Counts:
        before = tree(out)
        with pytest.raises(PipelineError) as info:
            build_manifest(root, out, **{**SPLIT, **options})
        for part in parts:
            assert part in str(info.value)
        assert "\x1b" not in str(info.value)
        assert tree(out) == before
        (line,) = [note for note in info.value.__notes__ if note.startswith("files: ")]
        return Counts(line, root)

    return run


@pytest.fixture
def split_file(tmp_path: Path) -> Callable[[Any], str]:
    """Write a JSON file of sections, and return its path for ``split``."""

    def save(content: Any) -> str:
        path = tmp_path / "split.json"
        path.write_text(json.dumps(content))
        return str(path)

    return save
