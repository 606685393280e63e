"""Several volumes are predicted at once: results stay in order, networks take turns, an error ends the run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image
from pipeline.model.bundle import Bundle, load_bundle
from pipeline.model.predictor import (
    LOW_AGREEMENT,
    MAX_VOLUMES_AT_ONCE,
    Predictor,
    disagreement,
    is_low,
    overlapped,
    pass_agreement,
    segment,
)
from pipeline.scripts.volumes import AFFINE
from tests.conftest import BUNDLES


def test_volumes_overlap_and_results_keep_their_order() -> None:
    together = threading.Barrier(MAX_VOLUMES_AT_ONCE)

    def work(number: int) -> int:
        together.wait(timeout=60)  # fails unless this many threads wait at the same time
        return number * number

    numbers = range(2 * MAX_VOLUMES_AT_ONCE)
    assert overlapped(work, numbers, "test") == [number * number for number in numbers]


def test_a_fault_ends_it_and_nothing_more_is_begun() -> None:
    begun = []
    failed = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            failed.set()
            raise PipelineError("broken")
        failed.wait(timeout=60)
        threading.Event().wait(0.2)

    with pytest.raises(PipelineError, match="broken"):
        overlapped(work, range(100), "test")
    assert len(begun) < 50


def fake_bundle(**fields: Any) -> Bundle:
    """A bundle without a network: its logits are the first channel."""
    import torch

    given: dict[str, Any] = {
        "name": "fake",
        "device": torch.device("cpu"),
        "network": None,
        "inferer": lambda batch, network: batch[:, :1],
        "preprocessing": lambda item: {
            "image": torch.from_numpy(load_image(Path(item["image"]))).movedim(-1, 0).float()
        },
        "to_probability": Compose([]),
        "to_mask": Compose([lambda data: {"pred": data["pred"] > 0.5}]),
        "weights_sha256": "",
        "config_sha256": "",
        "settings": {},
    }
    return Bundle(**{**given, **fields})


def test_networks_take_turns(manifest: Path) -> None:
    """Only one thread may use an inferer or a compiled network, because both keep the batch as state."""
    inside, most = [0], [0]

    def inferer(batch: Any, network: object) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.05)
        inside[0] -= 1
        return batch[:, :1]

    images = [volume.image for volume in read_manifest(manifest).sections["training"][:4]]
    predictor = Predictor([fake_bundle(inferer=inferer)])
    found = overlapped(lambda image: predictor.predict(image).probability, images, "test")
    assert [probability.shape for probability in found] == [load_image(image).shape[:3] for image in images]
    assert most == [1]


def test_an_array_is_predicted_like_its_file(manifest: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    predictor = Predictor([load_bundle(BUNDLES[0])], flips=True, uncertainty=True)
    one, two = predictor.predict(str(image)), predictor.predict(load_image(image))
    np.testing.assert_array_equal(one.probability, two.probability)
    assert one.uncertainty is not None
    assert one.uncertainty.shape == one.mask.shape == one.probability.shape


@pytest.mark.parametrize("name", ["three.nii.gz", "three.mha", "three.nrrd"])
def test_three_channels_as_itk_writes_them_are_predicted_alike(manifest: Path, tmp_path: Path, name: str) -> None:
    import SimpleITK

    volume = nib.load(read_manifest(manifest).sections["validation"][0].image)
    voxels = np.asarray(volume.dataobj)
    image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0, 3), isVector=True)
    image.SetDirection((np.diag([-1.0, -1, 1]) @ volume.affine[:3, :3]).ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / name))
    predictor = Predictor(BUNDLES[0], all_components=True)
    expected = predictor.predict(voxels)
    assert expected.mask.any()
    assert np.allclose(expected.probability, predictor.predict(tmp_path / name).probability, atol=1e-6)
    assert not np.allclose(expected.probability, predictor.predict(voxels[..., 1]).probability, atol=1e-6)


def test_bundles_may_be_named_by_their_folders(manifest: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    named, loaded = Predictor(str(BUNDLES[0])), Predictor([load_bundle(BUNDLES[0])])
    np.testing.assert_array_equal(named.predict(image).mask, loaded.predict(image).mask)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SRA", "AIR"])
def test_a_volume_of_another_orientation_gets_its_own_mask(manifest: Path, tmp_path: Path, axes: str) -> None:
    """The network gets the same volume for every orientation, and the mask has the orientation of the file."""
    image = nib.load(read_manifest(manifest).sections["validation"][0].image)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii.gz")
    predictor = Predictor(BUNDLES[0], flips=True)
    plain = predictor.predict(read_manifest(manifest).sections["validation"][0].image)
    turned = predictor.predict(tmp_path / "turned.nii.gz")
    assert plain.mask.any()
    assert np.array_equal(nib.apply_orientation(plain.mask, turn), turned.mask)
    assert np.allclose(nib.apply_orientation(plain.probability, turn), turned.probability, atol=1e-6)


def test_a_volume_of_two_channels_is_refused() -> None:
    with pytest.raises(PipelineError, match="shape"):
        Predictor(BUNDLES[0]).predict(np.zeros((32, 32, 4, 2), np.uint8))


def test_what_cannot_be_asked_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no bundle given"):
        Predictor([])
    with pytest.raises(PipelineError, match="--uncertainty with one network"):
        Predictor([fake_bundle()], uncertainty=True)
    (tmp_path / "x_image.nii.gz").write_bytes(b"no volume")
    with pytest.raises(PipelineError, match=r"x_image\.nii\.gz"):
        Predictor([fake_bundle()]).predict(tmp_path / "x_image.nii.gz")


def test_several_passes_have_an_agreement(manifest: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    predictor = Predictor(BUNDLES[:2])
    masks = [predictor.mask_of(one) for one in predictor.passes(image)]
    assert masks[0].any() or masks[1].any()
    found = predictor.predict(image)
    assert (found.agreement, found.uncertainty) == (pass_agreement(masks), None)
    assert np.allclose(found.probability, np.mean([*predictor.passes(image)], axis=0), atol=1e-6)
    assert Predictor(BUNDLES[0]).predict(image).agreement is None


def test_masks_on_which_networks_agree_less_are_low() -> None:
    assert is_low(0.0)
    assert is_low(LOW_AGREEMENT - 1e-6)
    assert not is_low(LOW_AGREEMENT)
    assert not is_low(None)


def test_agreement_is_the_mean_dsc_of_all_pairs() -> None:
    one, two, none = np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8)
    one[0], two[0, :2] = 1, 1
    assert pass_agreement([one, one]) == 1
    assert pass_agreement([one, two]) == pytest.approx(2 * 2 / 6)
    assert pass_agreement([one, two, none]) == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)
    assert pass_agreement([none, none]) is None
    assert pass_agreement([one]) is None


def test_uncertainty_is_the_deviation_of_the_passes() -> None:
    none, half, full = (np.full((3, 4, 1), value, np.float32) for value in (0, 0.5, 1))
    assert not disagreement([half, half]).any()
    apart = disagreement([none, full])
    assert apart.dtype == np.float32
    assert apart.shape == (3, 4, 1)
    assert (apart == 0.5).all()
    assert disagreement([none, half, full]) == pytest.approx(np.sqrt(1 / 6))


OBLIQUE = np.array([[-0.1, -0.9, 0.3, 20], [-0.9, 0.1, 0.2, 30], [-0.2, -0.3, 4.0, -10], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def flair(manifest: Path) -> nib.Nifti1Image:
    """The FLAIR image of a phantom, with an affine as from a scanner."""
    image = load_image(read_manifest(manifest).sections["validation"][0].image)
    turn, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = turn * np.sign(np.sum(turn * OBLIQUE[:3, :3], axis=0)) * (0.9, 0.9, 4)
    found = nib.Nifti1Image(image[..., 1], affine)
    found.header.set_xyzt_units("mm")
    return found


def test_an_image_of_any_kind_gets_the_same_mask(flair: nib.Nifti1Image, tmp_path: Path) -> None:
    """Inputs: a path, images of nibabel and SimpleITK, a MetaTensor, an array, DICOM in a folder or zip, slices."""
    import shutil

    import SimpleITK
    from monai.data import MetaTensor

    from tests.imaging.series import save_itk, write_series

    voxels = np.asarray(flair.dataobj)
    nib.save(flair, tmp_path / "flair.nii.gz")
    mha = save_itk(tmp_path / "flair.mha", voxels, flair.affine)
    write_series(tmp_path / "dicom", voxels, flair.affine)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "dicom")
    predictor = Predictor(BUNDLES[0], all_components=True)
    expected = predictor.predict(tmp_path / "flair.nii.gz")
    assert expected.probability.max() > 0.1
    assert np.allclose(expected.affine, flair.affine, atol=1e-5)
    assert expected.volume_ml == pytest.approx(expected.mask.sum() * 0.9 * 0.9 * 4 / 1000)
    given: dict[str, Any] = {
        "text": (str(tmp_path / "flair.nii.gz"),),
        "mha": (mha,),
        "nibabel": (flair,),
        "SimpleITK": (SimpleITK.ReadImage(str(mha)),),
        "MetaTensor": (MetaTensor(voxels[None].astype(np.float32), affine=flair.affine),),
        "array": (voxels, flair.affine),
        "big endian": (voxels.astype(">i4"), flair.affine),
        "dicom": (tmp_path / "dicom",),
        "zip": (tmp_path / "zipped.zip",),
    }
    for name, arguments in given.items():
        found = predictor.predict(*arguments)
        turn = nib.orientations.ornt_transform(nib.io_orientation(found.affine), nib.io_orientation(flair.affine))
        assert np.allclose(nib.apply_orientation(found.probability, turn), expected.probability, atol=1e-5), name
        assert found.volume_ml == pytest.approx(expected.volume_ml), name


def test_an_array_without_an_affine_lies_as_the_networks_see_it(flair: nib.Nifti1Image) -> None:
    from monai.data import MetaTensor

    voxels = np.asarray(flair.dataobj)
    found = segment(voxels, bundles=BUNDLES[0])
    assert np.array_equal(found.probability, segment(flair, bundles=BUNDLES[0]).probability)
    assert found.volume_ml is None
    assert np.array_equal(found.affine, AFFINE)
    bare = segment(MetaTensor(voxels[None].astype(np.float32)), bundles=BUNDLES[0])
    assert np.array_equal(found.probability, bare.probability)
    assert (bare.volume_ml, bare.affine.tolist()) == (None, AFFINE.tolist())
    with pytest.raises(TypeError, match="list"):
        segment([1, 2], bundles=BUNDLES[0])


def test_several_patients_are_not_one_image(flair: nib.Nifti1Image, tmp_path: Path) -> None:
    for name in ("a_flair.nii.gz", "b_flair.nii.gz"):
        nib.save(flair, tmp_path / name)
    with pytest.raises(PipelineError, match=r"2 patients \(expected one\)"):
        segment(tmp_path, bundles=BUNDLES[0])


def test_every_component_is_kept_where_asked() -> None:
    plain, every = (Predictor(BUNDLES[0], all_components=keep) for keep in (False, True))
    probability = np.zeros((8, 8, 4), np.float32)
    probability[:2, :2] = probability[5:7, 5:7, :2] = 0.9
    assert plain.mask_of(probability).sum() == 16
    assert every.mask_of(probability).sum() == 24


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("mm", 1)])
def test_the_affine_is_in_mm_for_every_unit(flair: nib.Nifti1Image, tmp_path: Path, unit: str, mm: float) -> None:
    image = nib.Nifti1Image(np.asarray(flair.dataobj), np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ flair.affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "flair.nii")
    for given in (image, tmp_path / "flair.nii"):
        found = Predictor([fake_bundle()]).predict(given)
        assert np.allclose(found.affine, flair.affine, rtol=1e-4, atol=1e-3)


def test_a_file_takes_no_second_affine(flair: nib.Nifti1Image, tmp_path: Path) -> None:
    nib.save(flair, tmp_path / "flair.nii")
    for given in (flair, tmp_path / "flair.nii", str(tmp_path / "flair.nii"), tmp_path):
        with pytest.raises(PipelineError, match=r"affine given beside a .*, which has its own. Leave it out"):
            Predictor([fake_bundle()]).predict(given, AFFINE)


def test_segment_warns_of_a_doubtful_geometry(flair: nib.Nifti1Image, tmp_path: Path, caplog: Any) -> None:
    voxels = np.asarray(flair.dataobj)
    odd = nib.Nifti1Image(voxels, np.eye(4))
    nib.save(odd, tmp_path / "odd.nii.gz")
    for given in (tmp_path / "odd.nii.gz", odd, str(tmp_path / "odd.nii.gz")):
        caplog.clear()
        segment(given, bundles=BUNDLES[0])
        assert caplog.text.count("the file names no orientation") == 1
    caplog.clear()
    for given in (voxels, flair):
        segment(given, bundles=BUNDLES[0])
    assert "WARNING" not in caplog.text
