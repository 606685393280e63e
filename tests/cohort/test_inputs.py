"""What is given to be predicted is found, and what cannot be told is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cohort.inputs import find_inputs
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import ManifestError, PipelineError
from pipeline.imaging.nifti import nifti_bytes


def test_a_changed_volume_of_a_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "copy")
    volume = read_manifest(tmp_path / "copy").sections["training"][0]
    volume.image.write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
    with pytest.raises(PipelineError, match="changed since the manifest was built"):
        find_inputs([tmp_path / "copy"], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "nothing there"),
        ("text.txt", "no volume"),
        ("empty", r"no volume, DICOM or PATIENT_NUMBER.tif in it"),
    ],
)
def test_an_input_that_holds_no_volume_is_named(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "text.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=message):
        find_inputs([tmp_path / given], tmp_path / "out")


@pytest.mark.parametrize("name", ["..nii.gz", "_image.nii.gz", "=cmd_image.nii.gz", ".hidden_image.nii.gz"])
def test_names_that_are_no_ids_are_refused(tmp_path: Path, name: str) -> None:
    """They become names of folders, and cells of tables."""
    (tmp_path / name).write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
    with pytest.raises(PipelineError, match=r"the name '.*' .* Rename the file"):
        find_inputs([tmp_path / name], tmp_path / "out")


def test_volumes_and_slices_in_one_folder_are_refused(slices, manifest: Path, tmp_path: Path) -> None:
    """Which of them is meant cannot be told, and nobody is to be left out in silence."""
    folder, _ = slices
    shutil.copy(read_manifest(manifest).sections["test"][0].image, folder / "new_image.nii.gz")
    with pytest.raises(PipelineError, match=r"holds 1 volumes and 2 patients in slices"):
        find_inputs([folder], tmp_path / "out")


def test_two_volumes_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "a_image.nii.gz", tmp_path / "deep" / "a_image.nii.gz"):
        path.write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
    with pytest.raises(PipelineError, match="two volumes of the name a"):
        find_inputs([tmp_path], tmp_path / "out")


@pytest.fixture
def slices(phantoms: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Two patients' images as a folder of TIFFs without masks, and their ids."""
    patients = sorted(folder.name for folder in phantoms.iterdir() if folder.is_dir())[:2]
    for patient in patients:
        shutil.copytree(phantoms / patient, tmp_path / "in" / patient, ignore=shutil.ignore_patterns("*_mask.tif"))
    return tmp_path / "in", patients


def test_only_nameless_slices_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "nameless.tif").touch()
    with pytest.raises(ManifestError, match="the name holds no slice number"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


def test_links_and_folders_that_cannot_be_followed_are_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(image, tmp_path / "in" / "a_image.nii.gz")
    link = tmp_path / "in" / "b_image.nii.gz"
    for target in (image, tmp_path / "nothing"):
        link.symlink_to(target)
        with pytest.raises(PipelineError, match=r"b_image.nii.gz: a symbolic link out of the folder, or to nothing"):
            find_inputs([tmp_path / "in"], tmp_path / "out")
        link.unlink()
    listing = os.scandir

    def denied(path: Path | str = ".") -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PipelineError, match=r"sub: the folder cannot be read \(Permission denied\)"):
        find_inputs([tmp_path / "in"], tmp_path / "out")
