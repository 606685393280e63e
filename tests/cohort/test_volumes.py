"""Cohorts of volumes become manifests that keep their grids. Every file is counted, as with slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from pipeline.cohort.building import build_manifest
from pipeline.cohort.changes import verify_manifest
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import ManifestError, PipelineError
from pipeline.imaging import formats, nifti
from pipeline.imaging.nifti import load_image, load_label, spacing_mm
from pipeline.scripts.volumes import read_voxels
from tests.cohort import volumes
from tests.cohort.conftest import Built, add_patient, check, tree
from tests.cohort.volumes import FLAIR, SPACING, phantom, save

HALF = {"split": "random", "validation_fraction": 0.5}


def built(root: Path, out: Path, **options: Any) -> Built:
    return Built(build_manifest(root, out, **{**HALF, **options}), (), root, out)


def loaded(out: Path, patient: str) -> tuple[Any, Any]:
    """Image and label of a patient as the networks see them."""
    volume = next(volume for volume in read_manifest(out).volumes if volume.patient == patient)
    return load_image(volume.image), load_label(volume.label)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIL", "SAR"])
def test_volumes_keep_their_grid(tmp_path: Path, orientation: str) -> None:
    root = volumes.pairs(tmp_path / "in", 2, orientation)
    done = built(root, tmp_path / "out")
    assert (done.used, done.skipped, done.refused) == (4, 0, 0)
    image, mask = phantom(0)
    info = done.manifest["patients"]["P1"]
    assert info["shape"] == list(mask.shape)
    assert info["spacing_mm"] == list(SPACING)
    assert info["lesion_voxels"] == mask.sum() > 0
    assert info["lesion_ml"] == pytest.approx(mask.sum() * np.prod(SPACING) / 1000)
    assert info["missing_sequences"] == ["pre-contrast", "post-contrast"]
    source, stored = nib.load(root / "images" / "P1.nii.gz"), nib.load(tmp_path / "out" / "volumes" / "P1_image.nii.gz")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), np.asarray(source.dataobj))
    np.testing.assert_allclose(stored.affine, source.affine, atol=1e-5)
    assert stored.get_data_dtype() == source.get_data_dtype()
    seen, label = loaded(tmp_path / "out", "P1")
    np.testing.assert_array_equal(seen[..., FLAIR], image[..., FLAIR])
    np.testing.assert_array_equal(label, mask)


def test_voxels_are_read_once_and_what_is_written_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = volumes.pairs(tmp_path / "in", 1)
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return read_voxels(path)

    for module in (formats, nifti):
        monkeypatch.setattr(module, "read_voxels", counted)
    build_manifest(root, tmp_path / "out", split="none")
    assert sorted(read) == sorted(path for path in root.rglob("*.nii.gz"))


def test_t1_of_a_part_of_the_head_is_warned_of(tmp_path: Path) -> None:
    image, mask = phantom()
    root = tmp_path / "in"
    for name, voxels in (("flair", image[..., 1]), ("t1", image[..., 0]), ("t1ce", image[..., 2, :3]), ("seg", mask)):
        save(root / f"P_{name}.nii.gz", voxels)
    info = built(root, tmp_path / "out", split="none").manifest["patients"]["P"]
    assert info["missing_sequences"] == ["post-contrast"]
    short, missing = info["warnings"]
    assert short.startswith("geometry: post-contrast T1 covers ")
    assert missing == "missing sequence: post-contrast, FLAIR is used instead"


def test_a_label_stored_in_another_orientation_comes_on_the_images_grid(tmp_path: Path) -> None:
    built(volumes.bids(tmp_path / "in"), tmp_path / "out")
    image, label = (nib.load(tmp_path / "out" / "volumes" / f"sub-01_{kind}.nii.gz") for kind in ("image", "label"))
    assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(label.affine) == ("R", "A", "S")
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(loaded(tmp_path / "out", "sub-01")[1], phantom(0)[1])


LAYOUTS: dict[str, tuple[Callable[..., Path], dict[str, Any], str, tuple[int, int], list[str]]] = {
    "brats": (volumes.brats, {"label_values": (1, 2, 4)}, "BraTS-GLI-00000-000", (8, 2), []),
    "bids": (volumes.bids, {}, "sub-01", (6, 3), ["post-contrast"]),
    "nnunet": (volumes.nnunet, {}, "C0", (6, 4), ["pre-contrast"]),
    "decathlon": (volumes.decathlon, {}, "BRATS_000", (4, 2), []),
    "pairs": (volumes.pairs, {"patients": 2}, "P1", (4, 0), ["pre-contrast", "post-contrast"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_patients(tmp_path: Path, layout: str) -> None:
    make, options, patient, (used, skipped), missing = LAYOUTS[layout]
    root = make(tmp_path / "in", 2)
    options = {key: value for key, value in options.items() if key != "patients"}
    done = built(root, tmp_path / "out", **options)
    assert (done.used, done.skipped, done.refused) == (used, skipped, 0)
    info = done.manifest["patients"][patient]
    assert info["missing_sequences"] == missing
    image, mask = phantom(0)
    seen, label = loaded(tmp_path / "out", patient)
    np.testing.assert_array_equal(label, mask)
    for channel, name in enumerate(("pre-contrast", "FLAIR", "post-contrast")):
        np.testing.assert_array_equal(seen[..., channel], image[..., FLAIR if name in missing else channel])
    before = tree(tmp_path / "out")
    assert not build_manifest(root, tmp_path / "out", **HALF, **options).is_new
    assert tree(tmp_path / "out") == before
    assert f"verified: {used} source files and 4 volumes agree" in verify_manifest(root, tmp_path / "out")


@pytest.mark.parametrize("end", [".nrrd", ".mha", ".mhd", ".nii"])
def test_every_format_is_read(tmp_path: Path, end: str) -> None:
    for number in (0, 1):
        image, mask = phantom(number)
        save(tmp_path / "in" / f"P{number}_image{end}", image[..., FLAIR].astype(np.int16), "LPS")
        save(tmp_path / "in" / f"P{number}_mask{end}", mask * np.uint8(7), "LPS")
    done = built(tmp_path / "in", tmp_path / "out")
    assert (done.used, done.skipped) == (8 if end == ".mhd" else 4, 0)
    seen, label = loaded(tmp_path / "out", "P0")
    np.testing.assert_array_equal(seen[..., FLAIR], phantom(0)[0][..., FLAIR])
    np.testing.assert_array_equal(label, phantom(0)[1])
    assert done.manifest["patients"]["P0"]["mask_values"] == [0, 7]
    assert done.manifest["patients"]["P0"]["spacing_mm"] == pytest.approx(SPACING, abs=1e-5)
    if end == ".mhd":
        (tmp_path / "in" / "P0_image.raw").write_bytes(bytes((tmp_path / "in" / "P0_image.raw").stat().st_size))
        with pytest.raises(ManifestError, match=r"P0_image\.raw: changed since"):
            verify_manifest(tmp_path / "in", tmp_path / "out")


def test_values_of_a_label_are_lesion_as_asked_for(tmp_path: Path) -> None:
    root = volumes.brats(tmp_path / "in", 1)
    with pytest.raises(ManifestError) as info:
        build_manifest(root, tmp_path / "out", split="none")
    name = "BraTS-GLI-00000-000"
    (line,) = str(info.value).splitlines()
    assert line == (
        f"{name}/{name}-seg.nii.gz: voxel values 0, 1, 2, 4 (expected 0 and one other). Say which are lesion, such as "
        "--label-values 1,2,4."
    )
    whole = build_manifest(root, tmp_path / "out", split="none", label_values=(1, 2, 4)).content["patients"][name]
    part = build_manifest(root, tmp_path / "out", split="none", label_values=(2,))
    assert part.is_new
    assert 0 < part.content["patients"][name]["lesion_voxels"] < whole["lesion_voxels"] == phantom(0)[1].sum()
    assert whole["mask_values"] == [0, 1, 2, 4]
    assert part.content["options"]["label_values"] == [2]


def test_channel_names_hold_for_a_volume_without_channels(tmp_path: Path) -> None:
    root = volumes.pairs(tmp_path / "in", 1)
    volumes.write_json(root / "dataset.json", {"channel_names": {"0": "T1", "1": "FLAIR"}})
    with pytest.raises(ManifestError, match=r"images/P1.nii.gz: shape \(.*\), but dataset.json names 2 channels"):
        build_manifest(root, tmp_path / "out", split="none")
    volumes.write_json(root / "dataset.json", {"channel_names": {"0": "FLAIR"}})
    assert build_manifest(root, tmp_path / "out", split="none").content["patients"].keys() == {"P1"}


def add(root: Path, name: str, image: Any = None, mask: Any = None, **label: Any) -> None:
    """A pair of volumes, by default those of the phantom."""
    save(root / f"{name}_image.nii.gz", phantom()[0][..., FLAIR] if image is None else image)
    save(root / f"{name}_mask.nii.gz", phantom()[1] if mask is None else mask, **label)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "elsewhere": ({"shift": 30}, "bad_mask.nii.gz: by its affine it lies up to 30 mm away from bad_image.nii.gz"),
    "spacing": ({"spacing": (0.9, 0.8, 3.0)}, "bad_mask.nii.gz: by its affine it lies up to 6 mm away"),
    "shape": ({"mask": phantom()[1][:-1]}, "bad_mask.nii.gz: a label of (31, 32, "),
    "4-D": ({"mask": phantom()[0]}, "bad_mask.nii.gz: shape (32, 32, "),
    "NaN": ({"mask": np.where(phantom()[1], np.nan, 0)}, "bad_mask.nii.gz: NaN or Inf among the voxels of the label"),
    "negative": ({"mask": phantom()[1].astype(np.int16) - 1}, "bad_mask.nii.gz: voxel values -1, 0 (expected"),
    "black": ({"image": 0 * phantom()[1]}, "bad_image.nii.gz: no voxel is above 0"),
    "channels": ({"image": phantom()[0][..., :2]}, "bad_image.nii.gz: shape (32, 32, "),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_fault_is_reported_or_its_patient_skipped(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    options, fault = BROKEN[how]
    add(root, "good")
    add(root, "bad", **options)
    with pytest.raises(ManifestError) as info:
        build_manifest(root, out, split="none")
    assert str(info.value).startswith(fault)
    assert len(str(info.value).splitlines()) == 1
    assert str(tmp_path) not in str(info.value)
    assert not out.exists()
    assert info.value.__notes__ == ["files: 4 found = 2 used + 0 skipped + 2 refused"]
    done = built(root, out, split="none", skip_faulty=True)
    assert (done.used, done.refused) == (2, 2)
    assert {path.name for path in (out / "volumes").iterdir()} == {"good_image.nii.gz", "good_label.nii.gz"}
    assert "left out: bad_" in caplog.text
    assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_what_stands_alone_is_a_fault_or_skipped(tmp_path: Path) -> None:
    root = volumes.pairs(tmp_path / "in", 2)
    (root / "labels" / "P2.nii.gz").unlink()
    with pytest.raises(ManifestError, match=r"images/P2\.nii\.gz: patient P2 has no mask"):
        build_manifest(root, tmp_path / "out", split="none")
    done = built(root, tmp_path / "out", split="none", skip_unpaired=True)
    assert (done.used, done.skipped) == (2, 1)


def test_slices_and_volumes_in_one_folder_are_refused(tmp_path: Path) -> None:
    root = volumes.pairs(tmp_path / "in", 2)
    add_patient(root, "P")
    with pytest.raises(PipelineError, match="holds 1 patients in slices and 2 in volumes"):
        build_manifest(root, tmp_path / "out", split="none")


def test_pictures_beside_volumes_are_skipped(tmp_path: Path) -> None:
    root = volumes.pairs(tmp_path / "in", 2)
    for name in ("P1_slice_12.png", "P1_3.tif", "overview.tif"):
        (root / name).touch()
    done = built(root, tmp_path / "out")
    assert (done.used, done.skipped) == (4, 3)
    assert {entry["reason"] for entry in done.manifest["skipped"]} == {"not a volume"}


def test_a_volume_among_slices_is_skipped(root: Path, out: Path, build: Callable[..., Built]) -> None:
    save(root / "atlas_image.nii.gz", phantom()[0])
    assert build().skipped == 1


def test_a_spacing_that_nobody_set_gives_no_millilitres(tmp_path: Path) -> None:
    image, mask = phantom()
    (tmp_path / "in").mkdir()
    nib.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / "in" / "x_image.nii.gz")
    nib.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "in" / "x_mask.nii.gz")
    info = built(tmp_path / "in", tmp_path / "out", split="none").manifest["patients"]["x"]
    assert (info["spacing_mm"], info["lesion_ml"]) == (None, None)
    assert "spacing: the file gives none" in info["warnings"]


def test_image_and_label_may_count_in_another_unit(tmp_path: Path) -> None:
    root = volumes.pairs(tmp_path / "in", 2)
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        changed = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1000, 1000, 1000, 1]) @ image.affine)
        changed.header.set_xyzt_units("micron")
        nib.save(changed, path)
    built(root, tmp_path / "out")
    for volume in read_manifest(tmp_path / "out").volumes:
        assert spacing_mm(volume.image) == spacing_mm(volume.label) == pytest.approx(SPACING)


def test_volumes_of_64_bits_are_stored_in_32(tmp_path: Path) -> None:
    image, mask = phantom()
    add(tmp_path / "in", "x", image=image[..., FLAIR].astype(np.float64) * 1.5, mask=mask.astype(np.int32))
    built(tmp_path / "in", tmp_path / "out", split="none")
    stored = nib.load(tmp_path / "out" / "volumes" / "x_image.nii.gz")
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_array_equal(loaded(tmp_path / "out", "x")[0][..., FLAIR], image[..., FLAIR] * np.float32(1.5))


def test_folds_keep_the_exams_of_a_person_together(tmp_path: Path) -> None:
    image, mask = phantom()
    for person in range(3):
        for exam in (1, 2):
            name = f"sub-{person}_ses-{exam}"
            save(tmp_path / "in" / f"{name}_FLAIR.nii.gz", image[..., FLAIR])
            save(tmp_path / "in" / f"{name}_mask.nii.gz", mask)
    done = built(tmp_path / "in", tmp_path / "out", validation_fraction=0.34, folds=3)
    for person in range(3):
        exams = [done.manifest["patients"][f"sub-{person}_ses-{exam}"] for exam in (1, 2)]
        assert exams[0]["section"] == exams[1]["section"]
        assert exams[0]["fold"] == exams[1]["fold"]


def test_pseudonyms_hide_names_of_patients_and_files(tmp_path: Path) -> None:
    root, key = volumes.bids(tmp_path / "in"), tmp_path / "apart" / "key.csv"
    save(root / "sub-77" / "anat" / "sub-77_FLAIR.nii.gz", phantom()[0][..., FLAIR])
    options = {"skip_unpaired": True, "pseudonymise": key}
    done = built(root, tmp_path / "out", **options)
    assert not build_manifest(root, tmp_path / "out", **HALF, **options).is_new
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "sub-" not in text
    assert not [name for name in tree(tmp_path / "out") if "sub-" in name]
    assert set(done.manifest["patients"]) < {"P0001", "P0002", "P0003"}
    (first, *_) = done.manifest["patients"].values()
    assert {path.split("/")[1].split("_", 1)[1] for path in first["sources"]} == {
        "flair.nii.gz",
        "pre.nii.gz",
        "label.nii.gz",
    }
    assert "verified: 6 source files" in verify_manifest(root, tmp_path / "out", key)


def test_nothing_of_a_header_but_the_grid_is_handed_on(tmp_path: Path) -> None:
    add(tmp_path / "in", "x")
    path = tmp_path / "in" / "x_image.nii.gz"
    image = nib.load(path)
    image.header["descrip"] = b"Doe, Jane"
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)
    built(tmp_path / "in", tmp_path / "out", split="none")
    stored = nib.load(tmp_path / "out" / "volumes" / "x_image.nii.gz")
    assert stored.header["descrip"].tobytes().rstrip(b"\0") == b"research only"
    assert spacing_mm(tmp_path / "out" / "volumes" / "x_image.nii.gz") == pytest.approx(
        voxel_sizes(image.affine)[[1, 0, 2]]
    )


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    root = volumes.decathlon(tmp_path / "in")
    for name in ("one", "two"):
        built(root, tmp_path / name, folds=2)
    one, two = ({p: v[1] for p, v in tree(tmp_path / name).items() if p != ".state.json"} for name in ("one", "two"))
    assert one == two
    content = json.loads((tmp_path / "one" / "manifest.json").read_text())
    check(content)
    assert "LGG" not in content["name"] + content["reference"] + content["licence"]


def test_pseudonyms_of_volumes_named_as_the_manifest_names_its_own(tmp_path: Path) -> None:
    """A path of the source is then a part of the path of a volume."""
    image, mask = phantom()
    for name in ("Ann", "Ben", "Cid"):
        save(tmp_path / "in" / f"{name}_image.nii.gz", image)
        save(tmp_path / "in" / f"{name}_label.nii.gz", mask)
    key = tmp_path / "apart" / "key.csv"
    built(tmp_path / "in", tmp_path / "out", pseudonymise=key)
    found = read_manifest(tmp_path / "out").volumes
    assert {volume.patient for volume in found} == {"P0001", "P0002", "P0003"}
    assert all(volume.image.is_file() and volume.label.is_file() for volume in found)
