"""The examples run as they are: the notebook with a smaller budget, the scripts on a phantom's FLAIR."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import nibabel as nib
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.cohort.volumes import FLAIR, phantom, save
from tests.conftest import BASIC, ROOT
from tests.test_docs import commands

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "phantoms_to_report.ipynb"
SMALLER = 'FOLDER = "demo"\nPATIENTS, SIZE, SLICES = 8, 48, 6\nEPOCHS, STEPS = 1, 2'
MOST_BYTES = 1_000_000


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: Any) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in commands(tmp_path / "programs").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert {name for name, _ in assigned(parameters.source)} == {name for name, _ in assigned(SMALLER)}
    parameters.source = SMALLER
    for _ in range(2):  # a second run finds the files of the first
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == 4
    assert (tmp_path / "demo" / "scores" / "report.html").is_file()
    assert len([*(tmp_path / "demo" / "scores" / "masks").iterdir()]) == 2
    assert (tmp_path / "demo" / "shapes" / "associations.csv").is_file()


def assigned(source: str) -> list[tuple[str, Any]]:
    """Names and values of a cell that only assigns."""
    names: dict[str, Any] = {}
    exec(source, {"__builtins__": {}}, names)
    return [*names.items()]


def test_the_saved_notebook_has_its_outputs_and_nothing_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert pictures(notebook) == 4
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    found = re.findall(
        r"/(?:home|Users|root|tmp|work|usr|opt)\b|site-packages|https?:|TCGA_|\d{4}-\d\d-\d\d", without_pictures
    )
    assert found == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.fixture(scope="module")
def flair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom's FLAIR as a NIfTI file, not in the networks' orientation."""
    image, _ = phantom(0, size=64, slices=8)
    return save(tmp_path_factory.mktemp("flair") / "flair.nii.gz", image[..., FLAIR], "LPS")


def run_script(name: str, folder: Path, *given: object, with_package: bool = True) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder, with this checkout's package or with no word of where it is."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(ROOT)} if with_package else {}
    command = [sys.executable, str(EXAMPLES / name), *map(str, given)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_both_scripts_write_the_mask_of_the_package(flair: Path, tmp_path: Path) -> None:
    import pipeline

    done = run_script("your_own_flair.py", tmp_path, flair, "own.nii.gz", "--bundle", "basic_unet")
    assert done.returncode == 0, done.stderr
    expected = pipeline.segment(flair, bundles="basic_unet")
    voxels = int(expected.mask.sum())
    assert voxels > 0
    assert done.stdout == f"own.nii.gz: {voxels} voxels, volume {expected.volume_ml:.2f} ml\n"

    packed = pipeline.pack_bundle(BASIC, tmp_path)
    with zipfile.ZipFile(packed.path) as archive:
        archive.extractall(tmp_path)
    given = ("basic_unet", flair, "bundle.nii.gz")
    done = run_script("bundle_in_your_script.py", tmp_path, *given, with_package=False)
    assert done.returncode == 0, done.stderr
    assert f"bundle.nii.gz: {voxels} voxels\n" in done.stdout
    for name in ("own.nii.gz", "bundle.nii.gz"):
        mask = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected.mask)
        np.testing.assert_allclose(mask.affine, nib.load(flair).affine)


def test_the_bundle_script_does_not_import_the_package() -> None:
    assert not re.search(r"^\s*(import|from)\s+pipeline\b", (EXAMPLES / "bundle_in_your_script.py").read_text(), re.M)


@pytest.mark.slow
def test_a_fault_is_one_line(tmp_path: Path) -> None:
    done = run_script("your_own_flair.py", tmp_path, "none.nii.gz", "mask.nii.gz", "--bundle", "basic_unet")
    assert done.returncode == 1
    assert re.fullmatch(r"error: none\.nii\.gz: .*\n", done.stderr.splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"`([\w.]+)`", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES.glob("*.*") if path.suffix in (".py", ".ipynb")}
