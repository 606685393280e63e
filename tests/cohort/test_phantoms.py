"""The synthetic dataset: layout, determinism and refusals. No patient is incomplete, and no other file is deleted."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.cohort.anatomy import SITE_GAINS, make_patient, patient_id
from pipeline.cohort.phantoms import make_phantoms
from pipeline.errors import PipelineError

SMALL = {"patients": 3, "size": 32, "slices": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout_is_the_published_one(tmp_path):
    folder = make_phantoms(str(tmp_path), **SMALL)
    assert folder == tmp_path / "kaggle_3m"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(patient_id(i, 0) for i in range(3))
    for index in range(3):
        image, mask = make_patient(index, size=32, slices=4, seed=0)
        name = patient_id(index, 0)
        assert {path.name for path in (folder / name).iterdir()} == {
            f"{name}_{number}{suffix}.tif" for number in range(1, len(image) + 1) for suffix in ("", "_mask")
        }
        for number in range(1, len(image) + 1):
            read = np.asarray(Image.open(folder / name / f"{name}_{number}.tif"))
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, image[number - 1])
            label = np.asarray(Image.open(folder / name / f"{name}_{number}_mask.tif"))
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, mask[number - 1])


def test_same_seed_same_bytes_and_patients_do_not_depend_on_their_number(tmp_path):
    for name, arguments in {"a": SMALL, "b": SMALL, "fewer": {**SMALL, "patients": 2}}.items():
        make_phantoms(tmp_path / name, **arguments)
    first = contents(tmp_path / "a" / "kaggle_3m")
    assert contents(tmp_path / "b" / "kaggle_3m") == first
    assert contents(tmp_path / "fewer" / "kaggle_3m").items() <= first.items()
    other, _ = make_patient(0, size=32, slices=4, seed=1)
    own, _ = make_patient(0, size=32, slices=4, seed=0)
    assert other.shape != own.shape or not np.array_equal(other, own)


def test_one_patient_in_eight_repeats_flair():
    missing = []
    for index in range(40):
        image, _ = make_patient(index, size=32, slices=4, seed=0)
        missing.append(tuple(channel for channel in (0, 2) if np.array_equal(image[..., channel], image[..., 1])))
    assert set(missing) == {(), (2,), (0, 2)}
    for start in range(0, 40, 8):
        assert sum(map(bool, missing[start : start + 8])) == 1


def test_lesion_free_patients_are_the_first(tmp_path):
    folder = make_phantoms(tmp_path, **SMALL, lesion_free=2)
    lesions = [
        any(np.asarray(Image.open(path)).any() for path in (folder / patient_id(i, 0)).glob("*_mask.tif"))
        for i in range(3)
    ]
    assert lesions == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "--patients 0 .expected 1 to 10000"),
        ({"patients": 10001}, "--patients 10001 "),
        ({"size": 31}, "--size 31 .expected 32 to 1024"),
        ({"size": 2048}, "--size 2048 "),
        ({"slices": 3}, "--slices 3 .expected 4 to 200"),
        ({"seed": -1}, "--seed -1 "),
        ({"patients": 2, "lesion_free": 3}, "--lesion-free 3 .expected 0 to 2"),
        ({"lesion_free": -1}, "--lesion-free -1 "),
    ],
)
def test_bad_arguments_are_refused_and_write_nothing(tmp_path, arguments, message):
    with pytest.raises(PipelineError, match=message):
        make_phantoms(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_more_than_the_disk_holds_is_refused(tmp_path):
    with pytest.raises(PipelineError, match=r"may need 10485\.8 GB"):
        make_phantoms(tmp_path / "out", patients=10000, size=1024, slices=200)
    assert not (tmp_path / "out").exists()


def test_another_call_is_refused_unless_forced(tmp_path):
    make_phantoms(tmp_path, **SMALL)
    before = contents(tmp_path)
    with pytest.raises(PipelineError, match=r"Choose another folder or pass --force"):
        make_phantoms(tmp_path, **SMALL, seed=5)
    assert contents(tmp_path) == before
    folder = make_phantoms(tmp_path, **SMALL, seed=5, force=True)
    assert {entry.name for entry in folder.iterdir()} == {patient_id(i, 5) for i in range(3)}


def test_force_never_deletes_what_is_no_phantom(tmp_path):
    real = tmp_path / "kaggle_3m" / "TCGA_XX_0001_19990101"
    real.mkdir(parents=True)
    with pytest.raises(PipelineError, match="TCGA_XX_0001_19990101"):
        make_phantoms(tmp_path, **SMALL, force=True)
    assert real.is_dir()


def test_files_of_operating_systems_are_not_in_the_way(tmp_path: Path) -> None:
    for folder in ("kaggle_3m", "volumes"):
        (tmp_path / folder).mkdir()
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._kaggle_3m"):
            (tmp_path / folder / name).touch()
    for _ in range(2):
        folder = make_phantoms(tmp_path, **SMALL, volumes=True, force=True)
        assert (folder / "Thumbs.db").exists()


def test_interrupted_call_leaves_whole_patients_and_goes_on(tmp_path, monkeypatch):
    make_phantoms(tmp_path / "whole", **SMALL)
    save, written = Image.Image.save, []

    def interrupted(self, target, *args, **kwargs):
        written.append(target)
        if len(written) == 12:  # during the second patient
            raise KeyboardInterrupt
        save(self, target, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(tmp_path / "cut", **SMALL)
    whole = contents(tmp_path / "whole" / "kaggle_3m")
    left = contents(tmp_path / "cut" / "kaggle_3m")
    assert left
    assert left.items() < whole.items()
    for entry in (tmp_path / "cut" / "kaggle_3m").iterdir():
        assert len(list(entry.iterdir())) == len(list((tmp_path / "whole" / "kaggle_3m" / entry.name).iterdir()))
    monkeypatch.setattr(Image.Image, "save", save)
    make_phantoms(tmp_path / "cut", **SMALL)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_unwritable_target_is_a_message(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(PipelineError, match="cannot write the phantoms"):
        make_phantoms(tmp_path / "file" / "out", **SMALL)


def test_patient_id_names_an_institution():
    names = [patient_id(index, 0) for index in range(30)]
    assert names[0].endswith("_0001")
    assert {name.split("_")[1] for name in names} == set(SITE_GAINS)


def test_volumes_hold_the_slices_with_a_voxel_size(tmp_path: Path) -> None:
    make_phantoms(tmp_path, **SMALL)
    slices = contents(tmp_path / "kaggle_3m")
    make_phantoms(tmp_path, **SMALL, volumes=True)
    assert contents(tmp_path / "kaggle_3m") == slices
    written = contents(tmp_path / "volumes")
    for index in range(3):
        image, mask = make_patient(index, size=32, slices=4, seed=0)
        name = patient_id(index, 0)
        for part, expected in (
            ("t1n", image[..., 0]),
            ("flair", image[..., 1]),
            ("t1c", image[..., 2]),
            ("seg", mask > 0),
        ):
            volume = nib.load(tmp_path / "volumes" / name / f"{name}_{part}.nii.gz")
            np.testing.assert_array_equal(np.asarray(volume.dataobj), expected.transpose(1, 2, 0))
            assert nib.aff2axcodes(volume.affine) == ("P", "L", "S")
            np.testing.assert_allclose(volume.header.get_zooms(), (230 / 32, 230 / 32, 35))
    assert len(written) == 12
    make_phantoms(tmp_path, **SMALL, volumes=True, force=True)
    assert contents(tmp_path / "volumes") == written
    (tmp_path / "volumes" / "patient").mkdir()
    with pytest.raises(PipelineError, match="holds other files than phantoms, such as volumes/patient"):
        make_phantoms(tmp_path, **SMALL, volumes=True, force=True)


def test_a_manifest_in_the_same_folder_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "PHANTOM_image.nii.gz").write_bytes(b"")
    make_phantoms(tmp_path, **SMALL)
    make_phantoms(tmp_path, **SMALL, force=True)
    assert (tmp_path / "volumes" / "PHANTOM_image.nii.gz").exists()
    with pytest.raises(PipelineError, match=r"such as volumes/PHANTOM_image\.nii\.gz"):
        make_phantoms(tmp_path, **SMALL, volumes=True)
