"""MHA, NRRD and NIfTI volumes give the same image, and T1 is resampled to the grid of FLAIR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.imaging.formats import LPS, as_nifti, join_sequences, read_volume, stem_of
from pipeline.imaging.nifti import oddities, spacing_mm
from pipeline.scripts.volumes import AFFINE, read_voxels
from tests.imaging.series import save_itk

OBLIQUE = np.array([[0.1, -0.9, 0.2, 40], [-0.85, -0.1, 0.1, 50], [0.1, 0.2, 4.0, -20], [0, 0, 0, 1]])


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 900, (12, 10, 6), dtype=np.int16)


def rotation() -> NDArray[np.float64]:
    """An oblique affine with perpendicular axes, as from scanners. ITK accepts no others."""
    turn, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = turn * (0.9, 0.9, 4.0)
    return affine


@pytest.mark.parametrize("suffix", [".mha", ".MHA", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz", ".NII.GZ"])
def test_every_format_gives_the_same_voxels_in_the_same_places(
    suffix: str, voxels: NDArray[np.int16], tmp_path: Path
) -> None:
    path = tmp_path / f"scan{suffix.lower()}"
    if "nii" in suffix.lower():
        nib.save(nib.Nifti1Image(voxels, rotation()), path)
    else:
        save_itk(path, voxels, rotation())
    path = path.rename(tmp_path / f"scan{suffix}")
    found = read_volume(path)
    assert np.array_equal(found.dataobj, voxels)
    assert np.allclose(found.affine, rotation(), atol=1e-5)
    assert stem_of(path.name) == "scan"


def test_slope_and_intercept_count(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, 5)
    nib.save(image, tmp_path / "a.nii")
    raw = nib.load(tmp_path / "a.nii")
    assert np.allclose(read_volume(tmp_path / "a.nii").get_fdata(), raw.get_fdata())


def test_what_is_no_volume_is_refused_in_a_line(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\nnothing")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels[0]), str(tmp_path / "flat.mha"))
    for name, message in (("a.mha", "no readable volume"), ("none.nrrd", "no such file"), ("flat.mha", "2 dimensions")):
        with pytest.raises(PipelineError, match=message) as error:
            read_volume(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_volume_without_voxels_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((0, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 0 4 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_text(header)
    negative = bytearray((tmp_path / "a.nii").read_bytes())
    negative[42:44] = (-2).to_bytes(2, "little", signed=True)  # dim[1]
    (tmp_path / "b.nii").write_bytes(negative)
    for name in ("a.nii", "b.nii", "a.mha"):
        with pytest.raises(PipelineError, match=f"{name}: holds no voxel"):
            read_volume(tmp_path / name)


def test_t1_of_another_grid_is_brought_onto_that_of_flair(tmp_path: Path) -> None:
    """A ramp stays the same in mm on every grid. FLAIR takes the place of a missing T1."""
    fine = np.diag([-1.0, -1, 2, 1])
    places = np.stack(np.meshgrid(*map(np.arange, (20, 18, 10)), indexing="ij"), axis=-1)
    ramp = 100 + nib.affines.apply_affine(fine, places)[..., 1].astype(np.float32)
    nib.save(nib.Nifti1Image(ramp, fine), tmp_path / "flair.nii.gz")
    coarse = np.array([[0, 2.0, 0, -38], [0, 0, 3.0, -51], [1.5, 0, 0, 0], [0, 0, 0, 1]])
    places = np.stack(np.meshgrid(*map(np.arange, (13, 20, 18)), indexing="ij"), axis=-1)
    nib.save(
        nib.Nifti1Image((100 + nib.affines.apply_affine(coarse, places)[..., 1]).astype(np.float32), coarse),
        tmp_path / "t1.nii.gz",
    )
    joined, remarks = join_sequences(tmp_path / "flair.nii.gz", tmp_path / "t1.nii.gz", None)
    assert remarks == []
    pre, flair, post = np.moveaxis(np.asarray(joined.dataobj), -1, 0)
    assert joined.shape == (20, 18, 10, 3)
    assert np.array_equal(flair, ramp)
    assert np.array_equal(post, ramp)
    assert np.allclose(pre, ramp, atol=1e-3)
    assert np.allclose(joined.affine, fine)


def test_t1_in_another_unit_lies_where_flair_does(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    affine = np.diag([1.0, 1, 2, 1])
    for name, unit, factor in (("flair", "mm", 1), ("t1", "micron", 1000)):
        image = nib.Nifti1Image(voxels, np.diag([factor, factor, factor, 1]) @ affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{name}.nii")
    joined = np.asarray(join_sequences(tmp_path / "flair.nii", tmp_path / "t1.nii", None)[0].dataobj)
    np.testing.assert_allclose(joined[..., 0], voxels, rtol=1e-4)


def test_an_affine_that_places_no_voxel_is_reported_in_a_line(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    """This also applies to T1 files and to the volumes of a cohort."""
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.set_sform(np.eye(4), 1)
    content = bytearray(image.to_bytes())
    content[280:296] = bytes(16)  # srow_x
    (tmp_path / "flat.nii").write_bytes(content)
    with pytest.raises(PipelineError, match=r"flat\.nii: the affine .* is not invertible"):
        read_volume(tmp_path / "flat.nii")


def test_flair_alone_stays_one_channel(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    nib.save(nib.Nifti1Image(voxels[..., None], np.eye(4)), tmp_path / "flair.nii")
    assert join_sequences(tmp_path / "flair.nii", None, None)[0].shape == voxels.shape


def test_t1_that_lies_elsewhere_is_refused(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    far = np.eye(4)
    far[:3, 3] = 500
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "flair.nii")
    nib.save(nib.Nifti1Image(voxels, far), tmp_path / "t1.nii")
    with pytest.raises(PipelineError, match=r"t1\.nii: by its affine it lies outside of flair\.nii"):
        join_sequences(tmp_path / "flair.nii", None, tmp_path / "t1.nii")
    nib.save(nib.Nifti1Image(np.stack([voxels] * 2, -1), np.eye(4)), tmp_path / "two.nii")
    with pytest.raises(PipelineError, match=r"expected one sequence"):
        join_sequences(tmp_path / "two.nii", tmp_path / "t1.nii", None)


@pytest.mark.parametrize(("slices", "covered"), [(20, 100), (19, 95), (18, 90), (10, 50), (1, 5)])
def test_flair_stands_in_for_t1_that_covers_too_little_of_the_head(tmp_path: Path, slices: int, covered: int) -> None:
    """Air in FLAIR, which fills half of the columns, does not count."""
    flair = np.zeros((10, 16, 20), np.float32)
    flair[:, :8] = 100
    affine = np.diag([-1.0, -1, 2, 1])
    nib.save(nib.Nifti1Image(flair, affine), tmp_path / "flair.nii")
    turned = nib.Nifti1Image(np.full((10, 9, slices), 7, np.float32), affine).as_reoriented(
        np.array([[2, 1], [0, -1], [1, 1]])
    )
    nib.save(turned, tmp_path / "t1.nii")
    joined, remarks = join_sequences(tmp_path / "flair.nii", None, tmp_path / "t1.nii")
    pre, own, post = np.moveaxis(np.asarray(joined.dataobj), -1, 0)
    assert np.array_equal(pre, flair)
    assert np.array_equal(own, flair)
    if covered >= 95:
        assert (remarks, np.unique(post[:, :8, :slices])) == ([], [7])
        return
    assert np.array_equal(post, flair)
    (remark,) = remarks
    assert remark.startswith(f"post-contrast T1 covers {covered} % of the head in FLAIR (expected at least 95 %)")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_three_channels_come_in_files_as_itk_writes_them(suffix: str, tmp_path: Path) -> None:
    channels = np.random.default_rng(0).integers(1, 900, (8, 7, 6, 3), dtype=np.int16)
    path = tmp_path / f"three{suffix}"
    image = SimpleITK.GetImageFromArray(np.moveaxis(channels, 2, 0).swapaxes(1, 2), isVector=True)
    SimpleITK.WriteImage(image, str(path))
    found, remarks = join_sequences(path, None, None)
    assert (np.asarray(found.dataobj).tolist(), remarks) == (channels.tolist(), [])
    with pytest.raises(PipelineError, match=r"expected one sequence, .I, J, K... Split the file"):
        join_sequences(path, path, None)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((6, 8, 7, 2)), isVector=True), str(path))
    with pytest.raises(PipelineError, match=r"shape .*, 2\) .expected FLAIR, .I, J, K., or pre-contrast, FLAIR"):
        join_sequences(path, None, None)


def test_a_metatensor_without_an_affine_of_its_own_is_an_array(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    """MONAI sets the identity itself. An affine of a file or of the caller is used, and so is the file's unit."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import LoadImage

    def grid_of(image: Any, affine: Any = None) -> tuple[Any, str]:
        found = as_nifti(image, affine)
        return found.affine.tolist(), found.header.get_xyzt_units()[0]

    bare = MetaTensor(torch.from_numpy(voxels)[None])
    assert grid_of(bare) == grid_of(voxels) == (AFFINE.tolist(), "unknown")
    assert grid_of(bare, rotation()) == grid_of(voxels, rotation())
    own = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(OBLIQUE))
    assert grid_of(own) == (OBLIQUE.tolist(), "mm")
    np.save(tmp_path / "a.npy", voxels)
    assert grid_of(LoadImage(reader="NumpyReader")(tmp_path / "a.npy")) == (AFFINE.tolist(), "unknown")
    for unit in ("mm", "micron", "unknown"):
        image = nib.Nifti1Image(voxels, np.eye(4))
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / "a.nii")
        loaded = LoadImage(reader="NibabelReader")(tmp_path / "a.nii")
        assert grid_of(loaded) == (np.eye(4).tolist(), unit)
        assert grid_of(loaded, rotation()) == grid_of(voxels, rotation())


def test_an_image_keeps_its_unit(voxels: NDArray[np.int16]) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_xyzt_units("micron")
    assert as_nifti(image).header.get_xyzt_units()[0] == "micron"
    placed = SimpleITK.GetImageFromArray(voxels)
    placed.SetSpacing((1.0, 1.0, 5.0))
    assert as_nifti(placed).header.get_xyzt_units()[0] == "mm"
    assert as_nifti(voxels).header.get_xyzt_units()[0] == "unknown"


def test_a_tensor_of_three_axes_has_no_channel(voxels: NDArray[np.int16]) -> None:
    import torch

    assert as_nifti(torch.from_numpy(voxels)).shape == voxels.shape
    assert as_nifti(torch.from_numpy(voxels)[None]).shape == (*voxels.shape, 1)


def test_wide_integers_are_read_and_colors_refused(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.astype(np.int64)), str(tmp_path / "wide.mha"))
    assert read_volume(tmp_path / "wide.mha").get_data_dtype() == np.float32
    color = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(PipelineError, match="expected numbers"):
        as_nifti(nib.Nifti1Image(color, np.eye(4)))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_place_that_itk_invents_is_no_place(voxels: NDArray[np.int16], tmp_path: Path, suffix: str) -> None:
    image = SimpleITK.GetImageFromArray(voxels)
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    for given in (tmp_path / f"a{suffix}", image):
        nib.save(as_nifti(given), tmp_path / "a.nii")
        assert spacing_mm(tmp_path / "a.nii") is None
        (warning,) = oddities(tmp_path / "a.nii")
        assert "names no orientation" in warning
        assert "left, posterior and superior" in warning
    image.SetOrigin((0.0, 0.0, 7.0))
    nib.save(as_nifti(image), tmp_path / "a.nii")
    assert spacing_mm(tmp_path / "a.nii") == (1, 1, 1)
    assert oddities(tmp_path / "a.nii") == []


def test_a_damaged_file_is_reported_without_an_address_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(PipelineError, match=r"a.mha: no readable volume \((?!.*0x)"):
        read_volume(tmp_path / "a.mha")


def test_t1_of_wide_integers_joins(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    for name, kind in (("flair", np.int16), ("t1", np.int64)):
        nib.save(nib.Nifti1Image(voxels.astype(kind), AFFINE, dtype=kind), tmp_path / f"{name}.nii")
    joined, remarks = join_sequences(tmp_path / "flair.nii", tmp_path / "t1.nii", None)
    assert remarks == []
    np.testing.assert_array_equal(joined.dataobj[..., 0], voxels)


def test_colors_and_complex_numbers_are_refused_wherever_voxels_are_read(tmp_path: Path) -> None:
    for voxels in (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.ones((4, 4, 4), np.complex64)):
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii")
        for read in (read_volume, read_voxels, lambda path: join_sequences(path, path, None)):
            with pytest.raises(PipelineError, match=r"a.nii: voxels of type .* \(expected numbers\)"):
                read(tmp_path / "a.nii")


def test_an_image_of_nibabel_without_orientation_is_refused(voxels: NDArray[np.int16]) -> None:
    with pytest.raises(PipelineError, match="a NIfTI image: the header has no orientation"):
        as_nifti(nib.Nifti1Image(voxels, None))


def test_a_second_affine_is_refused(voxels: NDArray[np.int16], tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii")
    for image in (tmp_path / "a.nii", nib.load(tmp_path / "a.nii"), SimpleITK.GetImageFromArray(voxels)):
        with pytest.raises(PipelineError, match=r"affine given beside a \w+, which has its own. Leave it out."):
            as_nifti(image, AFFINE)


def test_a_metatensor_may_count_to_left_and_posterior(voxels: NDArray[np.int16]) -> None:
    """As MONAI's ITKReader gives it with ``affine_lps_to_ras=False``."""
    import torch
    from monai.data import MetaTensor
    from monai.utils import SpaceKeys

    for space, expected in ((SpaceKeys.RAS, OBLIQUE), (SpaceKeys.LPS, LPS @ OBLIQUE)):
        image = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(OBLIQUE), meta={"space": space})
        assert as_nifti(image).affine.tolist() == expected.tolist()


def test_wrong_images_in_memory_are_one_line(voxels: NDArray[np.int16]) -> None:
    for shape in ((4, 5), (2, 3, 4, 5)):
        image = SimpleITK.GetImageFromArray(np.ones(shape), isVector=False)
        with pytest.raises(PipelineError, match=rf"a SimpleITK image of {len(shape)} dimensions \(expected 3\)"):
            as_nifti(image)
    for affine in (np.eye(3), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1])):
        with pytest.raises(PipelineError, match=r"^affine \[\[.*\]\] \(expected 4 rows of 4 numbers, invertible\)"):
            as_nifti(voxels, affine)


def test_a_tensor_may_have_any_number_type(voxels: NDArray[np.int16]) -> None:
    import torch

    for kind in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
        tensor = torch.from_numpy(voxels).to(kind)
        found = as_nifti(tensor)
        assert found.get_data_dtype() == np.float32
        assert np.array_equal(found.dataobj, tensor.float().numpy())
