"""Predictions come back on the volume's own grid, averaged over networks and mirror images, also by a bundle alone."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import AFFINE
from pipeline.model.bundle import load_bundle
from pipeline.model.predictor import Predictor
from pipeline.scripts.volumes import oriented
from tests.conftest import TINY, every_network, lively_weights


def test_probabilities_are_averaged_over_bundles_and_flips(trained, manifest, tmp_path: Path) -> None:
    bundle, out = trained
    one = load_bundle(bundle, out / "model.pt")
    other = load_bundle(bundle, lively_weights(trained, manifest, tmp_path / "model.pt"))
    image = read_manifest(manifest).sections["validation"][0].image
    alone = [Predictor([item]).predict(image).probability for item in (one, other)]
    assert np.abs(alone[0] - alone[1]).max() > 0.001
    assert np.allclose(Predictor([one, other]).predict(image).probability, np.mean(alone, axis=0), atol=1e-6)
    volume = nib.load(image)
    mirrored = tmp_path / "mirrored_image.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[:, ::-1], volume.affine), mirrored)
    by_hand = (alone[1] + Predictor([other]).predict(mirrored).probability[:, ::-1]) / 2
    assert np.abs(by_hand - alone[1]).max() > 0.001
    assert np.allclose(Predictor([other], flips=True).predict(image).probability, by_hand, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 56, 5, 3), (48, 48, 1, 3), (17, 16, 3, 3)])
@pytest.mark.parametrize("content", ["noise", "one bright voxel"])
def test_odd_volumes_come_back_on_their_own_grid(trained, tmp_path: Path, shape: tuple[int, ...], content: str) -> None:
    bundle, out = trained
    voxels = np.zeros(shape, dtype=np.uint8)
    if content == "noise":
        voxels[:] = np.random.default_rng(0).integers(0, 255, shape)
    else:
        voxels[3, 4, 0, 1] = 255
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "x_image.nii.gz")
    built = load_bundle(bundle, out / "model.pt")
    predictor = Predictor([built], flips=True)
    probabilities = list(predictor.passes(tmp_path / "x_image.nii.gz"))
    probabilities.append(predictor.predict(tmp_path / "x_image.nii.gz").probability)
    for probability in probabilities:
        assert probability.shape == shape[:3]
        assert probability.dtype == np.float32
        assert 0 <= probability.min() <= probability.max() <= 1


def test_a_volume_that_cannot_be_read_is_named(trained, tmp_path: Path) -> None:
    built = load_bundle(trained[0], trained[1] / "model.pt")
    (tmp_path / "x_image.nii.gz").write_bytes(b"no volume")
    with pytest.raises(PipelineError, match=r"x_image\.nii\.gz"):
        Predictor([built]).predict(tmp_path / "x_image.nii.gz")
    with pytest.raises(PipelineError, match="no bundle"):
        Predictor([])


@every_network
@pytest.mark.slow
def test_bundle_runs_alone_from_any_directory(trained, manifest, tmp_path: Path) -> None:
    """Copied elsewhere, started by MONAI's own command line where ``pipeline`` cannot be imported."""
    bundle, _ = trained
    shutil.copytree(bundle, tmp_path / "elsewhere" / bundle.name, ignore=shutil.ignore_patterns("*.pt", "eval"))
    copied = tmp_path / "elsewhere" / bundle.name
    (copied / "models").mkdir(exist_ok=True)
    weights = lively_weights(trained, manifest, copied / "models" / "model.pt")
    patients = tmp_path / "images"
    patients.mkdir()
    volume = read_manifest(manifest).sections["validation"][0]
    shutil.copy(volume.image, patients)
    code = "import runpy, sys; sys.modules['pipeline'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    config = str(copied / "configs" / "inference.json")
    command = ["run", "--config_file", config, "--dataset_dir", str(patients), "--output_dir", "masks"]
    command += ["--image_size", str(TINY["image_size"])]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = nib.load(tmp_path / "masks" / f"{volume.patient}_image_mask.nii.gz")
    assert written.shape == nib.load(volume.image).shape[:3]
    expected = Predictor([load_bundle(bundle, weights)]).predict(volume.image).mask
    assert expected.any()
    assert np.array_equal(np.asarray(written.dataobj), expected)
    assert np.allclose(written.affine, nib.load(volume.image).affine, atol=1e-5)


def test_inference_writes_masks_on_the_grid_of_any_volume(trained, manifest, tmp_path: Path, run_config) -> None:
    """All 48 orders and directions of the axes, tilted ones, and a single slice."""
    place = np.array([[0, -0.9, 0, 110], [-0.9, 0, 0, 120], [0, 0, 4, -60], [0, 0, 0, 1]])
    tilt = np.array([[0.98, 0, 0.2, 0], [0, 1, 0, 0], [-0.2, 0, 0.98, 0], [0, 0, 0, 1]])
    voxels = np.asarray(nib.load(read_manifest(manifest).sections["validation"][0].image).dataobj)
    native = nib.Nifti1Image(voxels, place)
    turns = [
        np.array([*zip(axes, flips, strict=True)])
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    volumes = {f"turned_{number:02}": native.as_reoriented(turn) for number, turn in enumerate(turns)}
    volumes |= {"tilted": nib.Nifti1Image(voxels, tilt @ place), "slice": native.slicer[:, :, 4:5]}
    volumes["coronal_slice"] = volumes["slice"].as_reoriented(np.array([[0, 1], [2, 1], [1, -1]]))
    (tmp_path / "in").mkdir()
    for name, volume in volumes.items():
        nib.save(volume, tmp_path / "in" / f"{name}_image.nii.gz")
    weights = lively_weights(trained, manifest, tmp_path / "model.pt")
    folders = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "ckpt_path": str(weights)}
    run_config(trained[0] / "configs" / "inference.json", image_size=TINY["image_size"], **folders)
    masks = {name: nib.load(tmp_path / "out" / f"{name}_image_mask.nii.gz") for name in volumes}
    for name, mask in masks.items():
        assert mask.shape == volumes[name].shape[:3]
        assert np.allclose(mask.affine, volumes[name].affine, atol=1e-4)
    expected = Predictor([load_bundle(trained[0], weights)]).predict(voxels, place).mask
    assert expected.any()
    for name in set(volumes) - {"slice", "coronal_slice"}:
        found = oriented(np.asarray(masks[name].dataobj), masks[name].affine)
        assert (found & expected).sum() >= 0.995 * (found.sum() + expected.sum()) / 2


def test_inference_without_volumes_is_said(trained, run_config, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failure:
        run_config(trained[0] / "configs" / "inference.json", dataset_dir=str(tmp_path))
    assert "no *_image.nii.gz" in str(failure.value.__cause__)
