"""A volume opens as it was written, aligned with its image, without text of other programs, or it is refused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import (
    load_image,
    load_label,
    load_map,
    nifti_bytes,
    oddities,
    save_map,
    save_mask,
    spacing_mm,
)
from pipeline.scripts.volumes import check_image, check_label


@pytest.fixture
def image_file(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3)).astype(np.uint8)
    path = tmp_path / "P_image.nii.gz"
    path.write_bytes(nifti_bytes(volume))
    return path, volume


def test_nifti_round_trip_orientation_and_header(image_file):
    path, volume = image_file
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume)
    assert nib.aff2axcodes(image.affine) == ("P", "L", "S")
    assert image.header.get_xyzt_units() == ("unknown", "unknown")
    assert image.header["descrip"].tobytes().rstrip(b"\0") == b"spacing unknown; research only"
    assert image.header.get_data_dtype() == np.uint8


def test_gzip_header_holds_neither_time_nor_name(image_file):
    path, volume = image_file
    data = path.read_bytes()
    assert data[3] == 0
    assert data[4:8] == b"\0\0\0\0"
    assert data == nifti_bytes(volume.copy(order="F"))


def test_saved_mask_opens_aligned(image_file, tmp_path):
    path, volume = image_file
    mask = volume[..., 0] > 100
    out = tmp_path / "new" / "mask.nii.gz"
    save_mask(mask, out, path)
    loaded = load_label(out)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, mask)
    saved, like = nib.load(out), nib.load(path)
    np.testing.assert_array_equal(saved.affine, like.affine)
    assert saved.header["descrip"] == like.header["descrip"]
    assert [p.name for p in out.parent.iterdir()] == ["mask.nii.gz"]


def test_saved_mask_takes_over_a_foreign_affine_and_spacing(tmp_path):
    like = tmp_path / "like.nii.gz"
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.diag([0.5, 0.7, 3, 1]))
    image.header.set_xyzt_units("mm")
    for field in ("descrip", "db_name", "aux_file", "intent_name", "data_type"):
        image.header[field] = b"TOP SECRET"
    image.header["intent_code"], image.header["intent_p1"] = 1007, 3
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"TOP SECRET"))
    nib.save(image, like)
    save_mask(np.ones((3, 4, 5), np.int64), tmp_path / "m.nii.gz", like)
    saved = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(saved.header.get_zooms(), (0.5, 0.7, 3), rtol=1e-6)
    assert saved.header.get_xyzt_units()[0] == "mm"
    assert saved.get_data_dtype() == np.uint8
    assert saved.header.get_intent() == ("none", (), "")
    assert saved.header["intent_p1"] == 0
    assert b"SECRET" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())


@pytest.mark.parametrize(
    ("mask", "name", "message"),
    [
        (np.zeros((6, 5, 3)), "m.nii.gz", "shape"),
        (np.full((6, 5, 4), 2), "m.nii.gz", "other than 0 and 1"),
        (np.full((6, 5, 4), np.nan), "m.nii.gz", "other than 0 and 1"),
        (np.zeros((6, 5, 4)), "m.tif", "nii.gz"),
    ],
)
def test_bad_masks_are_not_saved(image_file, tmp_path, mask, name, message):
    with pytest.raises(PipelineError, match=message):
        save_mask(mask, tmp_path / name, image_file[0])
    assert not (tmp_path / name).exists()


def test_unreadable_volumes_are_named(image_file, tmp_path):
    path, _ = image_file
    volume = np.random.default_rng(1).integers(0, 255, (32, 32, 9, 3)).astype(np.uint8)
    path.write_bytes(nifti_bytes(volume))
    with pytest.raises(PipelineError, match="no such file"):
        load_label(tmp_path / "none.nii.gz")
    with pytest.raises(PipelineError, match=r"expected \(H, W, D\)"):
        load_label(path)
    label = tmp_path / "label.nii.gz"
    label.write_bytes(nifti_bytes(volume[..., 0]))
    with pytest.raises(PipelineError, match="voxel values"):
        load_label(label)
    path.write_bytes(path.read_bytes()[:-30])  # the voxels are cut, the header is not
    with pytest.raises(PipelineError, match="damaged"):
        load_label(path)
    path.write_bytes(b"no nifti")
    with pytest.raises(PipelineError, match="no readable NIfTI"):
        load_label(path)
    other = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(np.zeros((2, 2, 2), np.uint8), np.eye(4)), other)
    with pytest.raises(PipelineError, match="MGHImage"):
        load_label(other)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(image_file, tmp_path, monkeypatch, call):
    path = tmp_path / "masks" / "mask.nii.gz"
    save_mask(np.zeros((6, 5, 4)), path, image_file[0])
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(PipelineError, match="No space left"):
        save_mask(np.ones((6, 5, 4)), path, image_file[0])
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_map_keeps_its_values_and_is_refused_with_gaps(image_file, tmp_path):
    values = np.random.default_rng(2).random((6, 5, 4), np.float32)
    save_map(values, tmp_path / "map.nii.gz", image_file[0])
    np.testing.assert_array_equal(load_map(tmp_path / "map.nii.gz"), values)
    values[0, 0, 0] = np.nan
    save_map(values, tmp_path / "map.nii.gz", image_file[0])
    with pytest.raises(PipelineError, match="NaN or Inf"):
        load_map(tmp_path / "map.nii.gz")


def test_an_image_has_three_channels(image_file, tmp_path):
    """In a file with only FLAIR, FLAIR takes the place of the others."""
    path, volume = image_file
    np.testing.assert_array_equal(load_image(path), volume)
    path.write_bytes(nifti_bytes(volume[..., 1]))
    np.testing.assert_array_equal(load_image(path), np.stack([volume[..., 1]] * 3, axis=-1))
    path.write_bytes(nifti_bytes(volume[..., :2]))
    with pytest.raises(PipelineError, match=r"expected \(H, W, D\) FLAIR"):
        load_image(path)


def test_a_mask_fits_nifti_2(tmp_path):
    """The header of NIfTI-2 lacks some fields of NIfTI-1."""
    image = nib.Nifti2Image(np.ones((6, 5, 4), np.float32), np.diag([1.0, 2, 3, 1]))
    nib.save(image, tmp_path / "image.nii.gz")
    save_mask(np.ones((6, 5, 4), np.uint8), tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, image.affine)


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
@pytest.mark.parametrize(("scale", "degrees"), [(1.05, 0), (1, 5)])
def test_a_label_that_drifts_away_from_its_image_is_refused(tmp_path, axes, scale, degrees):
    """A small error per voxel becomes large at the corner."""
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    for name, factor in (("image", np.eye(3)), ("label", rotation * scale)):
        affine = np.eye(4)
        affine[:3, :3] = factor @ np.diag([1, 1, 4])
        volume = nib.Nifti1Image(np.zeros((64, 64, 8), np.uint8), affine)
        ornt = nib.orientations.axcodes2ornt(axes)
        turned = volume.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), ornt))
        nib.save(turned, tmp_path / f"{name}.nii.gz")
    with pytest.raises(PipelineError, match=r"by its affine it lies up to [\d.]+ mm away from image"):
        check_label(tmp_path / "label.nii.gz", tmp_path / "image.nii.gz")
    check_label(tmp_path / "image.nii.gz", tmp_path / "image.nii.gz")


LPS = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 1, -70], [0, 0, 0, 1]])
TWICE = LPS @ np.diag([2, 2, 2, 1])


@pytest.mark.parametrize(
    ("channels", "sform", "qform", "fits"),
    [
        ((), TWICE, np.eye(4), False),
        ((), TWICE, None, False),
        ((3,), LPS, None, False),
        ((3,), None, LPS, False),
        ((), TWICE, LPS, True),
        ((), LPS, None, True),
        ((), None, LPS, True),
        ((3,), LPS, LPS, True),
    ],
    ids=[
        "qform is another",
        "voxel sizes, no qform",
        "channels, no qform",
        "channels, no sform",
        "voxel sizes",
        "no qform",
        "no sform",
        "channels",
    ],
)
def test_a_volume_that_monai_reads_in_another_orientation_is_refused(tmp_path, channels, sform, qform, fits):
    """The header states voxels of 1 mm."""
    image = nib.Nifti1Image(np.ones((6, 5, 4, *channels), np.uint8), None)
    image.header.set_qform(qform, 0 if qform is None else 1)
    image.header.set_sform(sform, 0 if sform is None else 4)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
    for check in (lambda: check_image(path), lambda: check_label(path, path)):
        if fits:
            check()
            continue
        with pytest.raises(PipelineError, match=r"a\.nii: the networks would see it in another orientation"):
            check()


UNITS = {"meter": 0.001, "mm": 1, "micron": 1000}
"""Unit of a header -> how many of it a mm has."""


def stored_in(unit: str, path: Path, move: float = 0) -> Path:
    """A volume of 1 x 2 x 3 mm voxels with a header in a given unit, moved by some mm."""
    affine = np.diag([1.0, 2, 3, 1])
    affine[:3, 3] = 7 + move
    affine[:3] *= UNITS[unit]
    image = nib.Nifti1Image(np.ones((6, 5, 4), np.uint8), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("unit", UNITS)
def test_the_headers_unit_counts(tmp_path, unit):
    """Distances in mm are the same, whatever the unit of the header."""
    image = stored_in(unit, tmp_path / "image.nii.gz")
    assert sorted(spacing_mm(image)) == pytest.approx([1, 2, 3])
    assert oddities(image) == []
    for other in UNITS:
        check_label(stored_in(other, tmp_path / "label.nii.gz"), image)
        with pytest.raises(PipelineError, match=r"lies up to 1\.73 mm away from image"):
            check_label(stored_in(other, tmp_path / "label.nii.gz", move=1), image)


def test_a_unit_that_nobody_knows_is_none(tmp_path):
    path = stored_in("mm", tmp_path / "image.nii")
    content = bytearray(path.read_bytes())
    content[123] = 7  # xyzt_units
    path.write_bytes(content)
    assert sorted(spacing_mm(path)) == pytest.approx([1, 2, 3])
    save_mask(np.ones((6, 5, 4), np.uint8), tmp_path / "mask.nii.gz", path)
    assert nib.load(tmp_path / "mask.nii.gz").header.get_xyzt_units() == ("unknown", "unknown")


def test_an_affine_that_nobody_has_set_is_reported(tmp_path):
    defaults = (("eye", np.eye(4), 1), ("itk", np.diag([-1.0, -1, 1, 1]), 1), ("set", np.diag([-1.0, 1, 1, 1]), 0))
    for name, affine, number in defaults:
        nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), affine), tmp_path / f"{name}.nii")
        assert len([line for line in oddities(tmp_path / f"{name}.nii") if "affine is a default" in line]) == number
    stored = nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), np.eye(4))
    stored.header.set_xyzt_units("mm")
    nib.save(stored, tmp_path / "mm.nii")
    assert spacing_mm(tmp_path / "mm.nii") is None
    assert spacing_mm(tmp_path / "set.nii") is None
    placed = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -120], [0, 0, 1, -70], [0, 0, 0, 1]])  # nibabel writes no unit
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.uint8), placed), tmp_path / "placed.nii")
    assert spacing_mm(tmp_path / "placed.nii") == (1, 1, 1)
