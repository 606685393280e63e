"""Predictions give the masks of an evaluation, from every kind of input, and report errors before they start."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from pipeline import predict
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import ManifestError, PipelineError, WritingError
from pipeline.imaging.nifti import AFFINE, load_image, load_label, nifti_bytes
from pipeline.model import predictions
from pipeline.model.bundle import load_bundle
from pipeline.model.predictions import Prediction, predictions_table
from pipeline.model.predictor import Predictor
from pipeline.scoring.protocols import largest_component
from pipeline.scripts.files import writing_errors
from tests.conftest import BUNDLES, evaluated, lively_weights


@pytest.fixture(scope="module")
def lively(trained: tuple[Path, Path], manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a bundle, and the folder of weights whose masks find lesions."""
    folder = tmp_path_factory.mktemp("lively")
    lively_weights(trained, manifest, folder / "model.pt")
    return trained[0], folder


UNUSED = (BUNDLES[0], Path("no_weights"))
"""A bundle for errors that are reported before any bundle is read."""


def run(lively: tuple[Path, Path], out: Path, *given: Path | str) -> dict[str, dict[str, object]]:
    bundle, weights = lively
    options = ["--bundle", str(bundle), "--weights", str(weights / "model.pt"), "--out", str(out)]
    options += [] if "--figures" in given else ["--no-figures"]
    assert predict.main([*map(str, given), *options]) == 0
    summary = json.loads((out / "predictions.json").read_text())
    return {row["volume"]: row for row in summary["volumes"]}


def image_of(voxels: np.ndarray, path: Path, affine: np.ndarray = AFFINE, units: str = "mm") -> Path:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def test_masks_are_those_of_evaluate(lively, manifest: Path, tmp_path: Path, capsys) -> None:
    evaluated(lively, manifest, tmp_path / "scores")
    found = run(lively, tmp_path / "out", manifest, "--probability")
    sections = read_manifest(manifest).sections
    assert list(found) == [volume.patient for section in sections.values() for volume in section]
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("volume")
    for volume in sections["validation"]:
        name = f"{volume.patient}_mask.nii.gz"
        mask = load_label(tmp_path / "out" / name)
        np.testing.assert_array_equal(mask, load_label(tmp_path / "scores" / "masks" / name))
        row = found[volume.patient]
        assert row["lesion_voxels"] == table.lesion_voxels[volume.patient] == mask.sum() > 0
        assert row["lesion_slices"] == np.count_nonzero(mask.any(axis=(0, 1)))
        assert (row["lesion_ml"], row["image_sha256"]) == (None, volume.image_sha256)
        probability = nib.load(tmp_path / "out" / f"{volume.patient}_probability.nii.gz")
        values = np.asarray(probability.dataobj)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(mask, largest_component(values >= 0.5))
        np.testing.assert_array_equal(probability.affine, AFFINE)
    assert "Research only" in capsys.readouterr().out


def test_a_folder_and_a_file_give_the_same(lively, manifest: Path, tmp_path: Path) -> None:
    first, second = read_manifest(manifest).sections["validation"][:2]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a_image.nii.gz").write_bytes(first.image.read_bytes())
    (tmp_path / "in" / "a_label.nii.gz").write_bytes(first.label.read_bytes())
    plain = tmp_path / "b.nii"
    nib.save(nib.load(second.image), plain)
    found = run(lively, tmp_path / "out", tmp_path / "in", plain)
    assert set(found) == {"a", "b"}
    whole = run(lively, tmp_path / "whole", manifest)
    assert [found[name]["lesion_voxels"] for name in "ab"] == [
        whole[volume.patient]["lesion_voxels"] for volume in (first, second)
    ]
    assert not list((tmp_path / "out").glob("*probability*"))


def test_millilitres_and_places_where_the_spacing_is_known(lively, manifest: Path, tmp_path: Path) -> None:
    volume = read_manifest(manifest).sections["validation"][0]
    voxels = np.asarray(nib.load(volume.image).dataobj)
    image_of(voxels, tmp_path / "known.nii.gz", AFFINE @ np.diag([0.5, 2, 5, 1]))
    image_of(voxels, tmp_path / "unknown.nii.gz", units="unknown")
    image_of(
        voxels,
        tmp_path / "metres.nii.gz",
        np.diag([0.001, 0.001, 0.001, 1]) @ AFFINE @ np.diag([0.5, 2, 5, 1]),
        "meter",
    )
    found = run(lively, tmp_path / "out", *(tmp_path / f"{name}.nii.gz" for name in ("known", "unknown", "metres")))
    assert found["known"]["lesion_ml"] == pytest.approx(found["known"]["lesion_voxels"] * 0.005)
    assert found["metres"]["lesion_ml"] == pytest.approx(found["known"]["lesion_ml"])
    assert found["metres"]["centroid_mm"] == found["known"]["centroid_mm"] != found["unknown"]["centroid_mm"]
    assert found["unknown"]["lesion_ml"] is None
    mask = nib.load(tmp_path / "out" / "known_mask.nii.gz")
    assert mask.header.get_zooms() == (0.5, 2, 5)


def test_a_volume_that_fails_does_not_stop_the_others(lively, manifest: Path, tmp_path: Path, capsys) -> None:
    images = [volume.image for volume in read_manifest(manifest).sections["validation"][:2]]
    whole = images[0].read_bytes()
    (tmp_path / "a_image.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b_image.nii.gz").write_bytes(whole)
    voxels = np.asarray(nib.load(images[1]).dataobj).astype(np.float32)
    voxels[0, 0, 0, 0] = np.nan
    image_of(voxels, tmp_path / "c_image.nii.gz")
    (tmp_path / "d_flair.mha").write_bytes(b"ObjectType = Image\n")
    with pytest.raises(ManifestError) as caught:
        run(lively, tmp_path / "out", tmp_path)
    assert [Path(path).name for path in caught.value.faults] == ["a_image.nii.gz", "c_image.nii.gz", "d_flair.mha"]
    assert caught.value.faults[str(tmp_path / "d_flair.mha")][0].startswith("no readable volume (")
    summary = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["volume"] for row in summary["volumes"]] == ["b"]
    assert list(summary["failed"]) == ["a_image.nii.gz", "c_image.nii.gz", "d_image.nii.gz"]
    assert "patients and other files: 4 found = 1 used + 0 skipped + 3 refused" in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(summary["failed"])
    assert load_label(tmp_path / "out" / "b_mask.nii.gz").any()
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 1
    with pytest.raises(ManifestError, match=r"a_image\.nii\.gz: damaged NIfTI file"):
        run(lively, tmp_path / "alone", tmp_path / "a_image.nii.gz")
    assert not (tmp_path / "alone").exists()


def test_bundles_are_averaged_with_flips_and_named(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    again = ["--bundle", str(lively[0]), "--weights", str(lively[1] / "model.pt")]
    run(lively, tmp_path / "out", image, *again, "--tta", "--probability")
    summary = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [bundle["name"] for bundle in summary["bundles"]] == [lively[0].name] * 2
    assert (summary["tta"], summary["backend"], summary["device"]) == (True, "torch", "cpu")
    bundle = load_bundle(lively[0], lively[1] / "model.pt")
    name = image.name.removesuffix("_image.nii.gz")
    written = np.asarray(nib.load(tmp_path / "out" / f"{name}_probability.nii.gz").dataobj)
    np.testing.assert_allclose(written, Predictor([bundle], flips=True).predict(image).probability, atol=1e-6)
    assert np.abs(written - Predictor([bundle]).predict(image).probability).max() > 1e-3


def test_every_fault_is_reported_before_the_first_prediction(tmp_path: Path) -> None:
    sound = np.zeros((8, 8, 3, 3), np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "sound_image.nii.gz").write_bytes(nifti_bytes(sound))
    (folder / "two_image.nii.gz").write_bytes(nifti_bytes(sound[..., :2]))
    (folder / "cut_image.nii.gz").write_bytes(nifti_bytes(sound)[:40])
    image_of(sound.astype(np.complex64), folder / "complex_image.nii.gz")
    header = gzip.decompress(nifti_bytes(sound))
    for name, start, field in (("code", 70, (9999).to_bytes(2, "little")), ("flat", 296, bytes(16))):
        changed = header[:start] + field + header[start + len(field) :]
        (folder / f"{name}_image.nii.gz").write_bytes(gzip.compress(changed))
    with pytest.raises(PipelineError) as caught:
        run(UNUSED, tmp_path / "out", folder)
    lines = [line.partition(": ") for line in str(caught.value).splitlines()]
    faults = {Path(path).name: message for path, _, message in lines}
    assert set(faults) == {f"{name}_image.nii.gz" for name in ("two", "cut", "complex", "flat", "code")}
    assert "shape (8, 8, 3, 2) (expected (H, W, D) FLAIR, or (H, W, D, 3)" in faults["two_image.nii.gz"]
    assert "complex64 (expected numbers)" in faults["complex_image.nii.gz"]
    assert "is not invertible. Correct the header" in faults["flat_image.nii.gz"]
    assert "no readable NIfTI" in faults["cut_image.nii.gz"]
    assert "no readable NIfTI" in faults["code_image.nii.gz"]
    assert not (tmp_path / "out").exists()


def test_what_is_odd_of_many_patients_is_one_line(lively, manifest: Path, tmp_path: Path, capsys) -> None:
    """Four patients lack a T1; the T1 of another covers half of the head."""
    voxels = load_image(read_manifest(manifest).sections["validation"][0].image)
    (tmp_path / "in").mkdir()
    for name in "ABCDE":
        image_of(voxels[..., 1], tmp_path / "in" / f"{name}_flair.nii.gz")
        image_of(voxels[..., 0], tmp_path / "in" / f"{name}_t1.nii.gz")
    image_of(voxels[..., : voxels.shape[2] // 2, 2], tmp_path / "in" / "E_t1ce.nii.gz")
    run(lively, tmp_path / "out", tmp_path / "in")
    lines = [line for line in capsys.readouterr().err.splitlines() if "FLAIR is used instead" in line]
    assert "A, B, C and 1 more (4 in all): no post-contrast T1: FLAIR is used instead" in lines[0]
    assert "E: post-contrast T1 covers " in lines[1]
    assert len(lines) == 2
    built = load_image(tmp_path / "out" / "volumes" / "E_image.nii.gz")
    assert np.array_equal(built[..., 2], built[..., 1])


def test_a_volume_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such file"):
        run(UNUSED, tmp_path / "out", tmp_path / "gone.nii.gz")


def test_what_systems_leave_is_no_volume(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (tmp_path / "in" / "__MACOSX").mkdir(parents=True)
    shutil.copy(image, tmp_path / "in" / "a_image.nii.gz")
    for name in ("._a_image.nii.gz", "__MACOSX/b_image.nii.gz"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert list(run(lively, tmp_path / "out", tmp_path / "in")) == ["a"]


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or Inf"), (-5, "no voxel is above 0")])
def test_intensities_without_a_head_are_named(lively, tmp_path: Path, value: float, message: str) -> None:
    image_of(np.full((40, 40, 5, 3), value, np.float32), tmp_path / "a.nii.gz")
    with pytest.raises(ManifestError, match=message):
        run(lively, tmp_path / "out", tmp_path / "a.nii.gz")


@pytest.fixture
def slices(phantoms: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Two patients' images as a folder of TIFFs without masks, and their ids."""
    patients = sorted(folder.name for folder in phantoms.iterdir() if folder.is_dir())[:2]
    for patient in patients:
        shutil.copytree(phantoms / patient, tmp_path / "in" / patient, ignore=shutil.ignore_patterns("*_mask.tif"))
    return tmp_path / "in", patients


def test_a_folder_of_slices_gives_what_the_manifest_gives(lively, slices, manifest: Path, tmp_path: Path) -> None:
    folder, patients = slices
    found = run(lively, tmp_path / "out", folder)
    assert list(found) == patients
    whole = run(lively, tmp_path / "whole", manifest)
    images = {v.patient: v.image for section in read_manifest(manifest).sections.values() for v in section}
    for patient in patients:
        assert found[patient]["lesion_voxels"] == whole[patient]["lesion_voxels"]
        built = tmp_path / "out" / "volumes" / f"{patient}_image.nii.gz"
        assert built.read_bytes() == images[patient].read_bytes()
        mask = nib.load(tmp_path / "out" / f"{patient}_mask.nii.gz")
        np.testing.assert_array_equal(mask.affine, AFFINE)
    # Predict into folders below the slices: volumes and pictures there are no input of the next run.
    for out in ("masks", "masks", "again"):
        assert list(run(lively, folder / out, folder, "--overwrite", "--figures")) == patients


def test_masks_among_the_slices_are_passed_over(lively, phantoms: Path, slices, tmp_path: Path, capsys) -> None:
    folder, patients = slices
    images = len(list(folder.rglob("*.tif")))
    masks = len(list((phantoms / patients[0]).glob("*_mask.tif")))
    for mask in (phantoms / patients[0]).glob("*_mask.tif"):
        (folder / patients[0] / mask.name).write_bytes(b"not looked at")
    (folder / ".DS_Store").touch()
    shutil.copytree(folder / patients[1], folder / "copy" / patients[1])
    assert list(run(lively, tmp_path / "out", folder)) == patients
    copies = len(list((folder / "copy").rglob("*.tif")))
    found, skipped = images + masks + 1 + copies, masks + 1 + copies
    assert f"files: {found} found = {images} used + {skipped} skipped + 0 refused" in capsys.readouterr().out


def test_faults_of_slices_are_reported_before_the_first_prediction(slices, tmp_path: Path) -> None:
    folder, (one, two) = slices
    numbers = sorted(folder.glob(f"{one}/*.tif"))
    numbers[0].write_bytes(b"<html>")
    (folder / two / f"{two}_4.tif").unlink()
    (folder / "nameless.tif").touch()
    with pytest.raises(ManifestError) as caught:
        run(UNUSED, tmp_path / "out", folder)
    message = str(caught.value)
    assert "an HTML page" in message
    assert "slice(s) 4 missing" in message
    assert "nameless.tif: the name has no slice number" in message
    assert not list(tmp_path.rglob("*.nii.gz"))
    found = len(list(folder.rglob("*.tif")))
    assert caught.value.__notes__ == [f"files: {found} found = 0 used + 0 skipped + {found} refused"]


def test_a_fault_leaves_the_volumes_of_before(lively, slices, tmp_path: Path) -> None:
    folder, (one, two) = slices
    run(lively, tmp_path / "out", folder)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")}
    (folder / two / f"{two}_4.tif").write_bytes(b"")
    first = sorted((folder / one).glob("*.tif"))[:2]
    first[0].write_bytes(first[1].read_bytes())  # The first patient stays readable, with other content.
    with pytest.raises(ManifestError, match="0 bytes"):
        run(lively, tmp_path / "out", folder, "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")} == before


def test_gaps_are_a_warning_where_allowed(lively, slices, tmp_path: Path, capsys) -> None:
    folder, (_, two) = slices
    whole = len(list(folder.glob(f"{two}/*.tif")))
    (folder / two / f"{two}_4.tif").unlink()
    found = run(lively, tmp_path / "out", folder, "--allow-gaps")
    assert found[two]["slices"] == whole - 1
    assert f"warning: {two}: gap: slice(s) 4 missing" in capsys.readouterr().err


def test_uncertainty_is_the_deviation_of_the_passes(lively, manifest: Path, tmp_path: Path, capsys) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    name = image.name.removesuffix("_image.nii.gz")
    found = run(lively, tmp_path / "out", image, "--tta", "--uncertainty")
    bundle = load_bundle(lively[0], lively[1] / "model.pt")
    one, two = Predictor([bundle], flips=True).passes(image)
    written = np.asarray(nib.load(tmp_path / "out" / f"{name}_uncertainty.nii.gz").dataobj)
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, np.abs(one - two) / 2, atol=1e-6)
    assert written.max() > 1e-3
    masks = [Predictor([bundle]).mask_of(passed) for passed in (one, two)]
    overlap = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert found[name]["agreement"] == pytest.approx(overlap)
    assert "agreement" in capsys.readouterr().out
    run(lively, tmp_path / "out", image, "--overwrite")
    assert not (tmp_path / "out" / f"{name}_uncertainty.nii.gz").exists()
    with pytest.raises(PipelineError, match="--uncertainty with one network"):
        run(lively, tmp_path / "other", image, "--uncertainty")


def test_every_nifti_of_a_folder_is_counted(lively, manifest: Path, tmp_path: Path, capsys) -> None:
    first, second = read_manifest(manifest).sections["validation"][:2]
    (tmp_path / "in" / "__MACOSX").mkdir(parents=True)
    shutil.copy(first.image, tmp_path / "in" / "a_image.nii.gz")
    for name in ("b.nii.gz", "._a_image.nii.gz", "__MACOSX/a_image.nii.gz"):
        shutil.copy(second.image, tmp_path / "in" / name)
    assert list(run(lively, tmp_path / "out", tmp_path / "in")) == ["a"]
    said = capsys.readouterr().out
    assert "patients and other files: 4 found = 1 used + 3 skipped + 0 refused\n" in said
    assert "skipped, hidden, or written by an operating system: ._a_image.nii.gz, a_image.nii.gz\n" in said
    assert "skipped, its name says neither FLAIR nor T1: b.nii.gz\n" in said


def test_a_flipped_bit_of_a_volume_is_reported(lively, manifest: Path, tmp_path: Path) -> None:
    """A checksum is verified although nibabel stops reading before it, at the last voxel."""
    first, second = read_manifest(manifest).sections["validation"][:2]
    data = bytearray(first.image.read_bytes())
    data[-8] ^= 1  # a byte of the checksum
    (tmp_path / "a_image.nii.gz").write_bytes(data)
    shutil.copy(second.image, tmp_path / "b_image.nii.gz")
    with pytest.raises(ManifestError, match=r"a_image.nii.gz: damaged NIfTI file \(CRC check failed"):
        run(lively, tmp_path / "out", tmp_path / "a_image.nii.gz", tmp_path / "b_image.nii.gz")
    assert [path.name for path in (tmp_path / "out").glob("*_mask.nii.gz")] == ["b_mask.nii.gz"]


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((8, 8, 2, 3), np.uint8), AFFINE)
    header = bytearray(image.to_bytes())
    header[42:48] = np.array([4096, 4096, 2000], "<i2").tobytes()  # dim[1:4]
    for name, data in (("a.nii", bytes(header)), ("b.nii.gz", gzip.compress(bytes(header)))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PipelineError, match=r"the header claims 4096 x 4096 x 2000 x 3 values \(expected at most"):
            run(UNUSED, tmp_path / "out", tmp_path / name)
    longer = gzip.compress(image.to_bytes() + bytes(2**25))
    (tmp_path / "c.nii.gz").write_bytes(longer)
    with pytest.raises(PipelineError, match="longer than its header says"):
        load_image(tmp_path / "c.nii.gz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name there")
def test_pipes_are_not_opened(manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    for name in ("manifest.json", "model.pt", "a_image.nii.gz"):
        os.mkfifo(tmp_path / name)
    reason = "not a file, but a folder, pipe, socket or device"
    with pytest.raises(PipelineError, match=rf"manifest.json: no manifest \({reason}\)"):
        read_manifest(tmp_path)
    with pytest.raises(PipelineError, match=rf"model.pt: no weights \({reason}\)"):
        run((BUNDLES[0], tmp_path), tmp_path / "out", image)
    with pytest.raises(PipelineError, match=rf"a_image.nii.gz: {reason}"):
        load_image(tmp_path / "a_image.nii.gz")


def test_files_that_would_take_all_memory_are_refused(manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**26)
    with pytest.raises(PipelineError, match=r"no manifest \(67108864 bytes, at most 33554432 are read\)"):
        read_manifest(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**20))
    with pytest.raises(PipelineError, match=r"model.pt: no readable weights \(ValueError\)"):
        run((BUNDLES[0], tmp_path), tmp_path / "out", image)


def test_options_that_fit_no_input_are_refused(tmp_path: Path) -> None:
    from tests.imaging.series import write_series

    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(np.ones((8, 8, 3), np.uint8)))
    for option in (["--series", "3"], ["--series", ""], ["--dicom-seg"]):
        with pytest.raises(PipelineError, match=rf"{option[0]} .*(DICOM|empty)"):
            run(UNUSED, tmp_path / "out", tmp_path / "a.nii.gz", *option)
    write_series(tmp_path / "dicom", np.ones((8, 8, 3), np.int16), AFFINE)
    with pytest.raises(PipelineError, match=r"--pseudonymise .*: lies in .* Keep the key in a separate folder"):
        run(UNUSED, tmp_path / "out", tmp_path / "a.nii.gz", "--pseudonymise", tmp_path / "key.csv")
    with pytest.raises(PipelineError, match="no_weights"):  # a folder of its own is not the folder of the image
        run(UNUSED, tmp_path / "out", tmp_path / "a.nii.gz", "--pseudonymise", tmp_path / "secret" / "key.csv")
    with pytest.raises(PipelineError, match="DICOM SEG names the patient"):
        run(UNUSED, tmp_path / "out", tmp_path / "dicom", "--dicom-seg", "--pseudonymise", tmp_path / "key.csv")


def test_a_study_of_which_no_dicom_seg_can_be_made_leaves_no_mask(lively, tmp_path: Path) -> None:
    """A mask without a row in the tables would look like a result."""
    from tests.imaging.series import edit, write_series

    def anonymous(header: Any) -> None:
        del header.PatientID, header.StudyID

    for path in write_series(tmp_path / "dicom", np.arange(40 * 44 * 5, dtype=np.int16).reshape(40, 44, 5), AFFINE):
        edit(path, anonymous)
    with pytest.raises(PipelineError, match="no DICOM SEG can be made of its headers"):
        run(lively, tmp_path / "out", tmp_path / "dicom", "--dicom-seg")
    assert not [*(tmp_path / "out").glob("*mask*"), *(tmp_path / "out").glob("*.dcm")]


def test_a_fault_names_no_folder_and_no_patient_with_a_pseudonym(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / "Ben_flair.nii.gz")
    (tmp_path / "in" / "Jane_flair.mha").write_bytes(b"ObjectType = Image")
    for name, key in (("plain", []), ("key", ["--pseudonymise", tmp_path / "key.csv"])):
        with pytest.raises(ManifestError):
            run(lively, tmp_path / name, tmp_path / "in", *key)
        failed = json.dumps(json.loads((tmp_path / name / "predictions.json").read_text())["failed"])
        assert str(tmp_path) not in failed
        assert ("Jane" in failed) == (name == "plain")


def test_a_fault_with_a_bare_file_name_names_no_patient(lively, manifest: Path, tmp_path: Path) -> None:
    image = nib.load(read_manifest(manifest).sections["validation"][0].image)
    voxels = np.asarray(image.dataobj)[..., 1]
    for name, shift in (("Ben_flair", 0), ("Jane_flair", 0), ("Jane_t1", 9999)):
        affine = image.affine.copy()
        affine[0, 3] += shift
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "in" / f"{name}.nii.gz")
    with pytest.raises(ManifestError, match="lies outside of Jane_flair"):
        run(lively, tmp_path / "out", tmp_path / "in", "--pseudonymise", tmp_path / "key.csv")
    failed = json.dumps(json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"])
    assert "lies outside of P000" in failed
    assert "Jane" not in failed


@pytest.mark.parametrize("name", ["figures/dsc.png", "figures/P/mine.png", "summary.json", "predictions.html"])
def test_files_of_no_prediction_stay(lively, manifest: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    image = read_manifest(manifest).sections["validation"][0].image
    with pytest.raises(PipelineError, match=r"Choose another --out"):
        run(lively, tmp_path / "out", image)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_maps_and_segments_of_no_prediction_stay(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    shutil.copy(image, tmp_path / "P_image.nii.gz")
    (tmp_path / "out").mkdir()
    for kind in ("seg.dcm", "probability.nii.gz", "uncertainty.nii.gz"):
        path = tmp_path / "out" / f"P_{kind}"
        path.write_text("mine")
        with pytest.raises(ManifestError, match=f"{path.name} belongs to another image"):
            run(lively, tmp_path / "out", tmp_path / "P_image.nii.gz", "--skip-existing")
        assert path.read_text() == "mine"
        path.unlink()


def test_no_mask_of_an_earlier_run_stays_beside_new_ones(lively, manifest: Path, tmp_path: Path) -> None:
    for name, volume in zip(("a", "b"), read_manifest(manifest).sections["validation"], strict=False):
        shutil.copy(volume.image, tmp_path / f"{name}_image.nii.gz")
    inputs = [tmp_path / f"{name}_image.nii.gz" for name in ("a", "b")]
    run(lively, tmp_path / "out", *inputs, "--tta", "--uncertainty")
    inputs[0].write_bytes(inputs[0].read_bytes()[:-50])
    with pytest.raises(ManifestError, match=r"a_image\.nii\.gz"):
        run(lively, tmp_path / "out", *inputs, "--overwrite")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["b_mask.nii.gz"]


def test_a_run_over_one_patient_keeps_the_others(lively, manifest: Path, tmp_path: Path) -> None:
    """Also one that fails: the folder stays one of a prediction, and its pictures do not show masks that are gone."""
    for name, volume in zip(("a", "b"), read_manifest(manifest).sections["validation"], strict=False):
        shutil.copy(volume.image, tmp_path / f"{name}_image.nii.gz")
    one, two = (tmp_path / f"{name}_image.nii.gz" for name in ("a", "b"))
    run(lively, tmp_path / "out", one, two, "--figures")
    whole = two.read_bytes()
    two.write_bytes(whole[:-50])
    with pytest.raises(ManifestError, match=r"b_image\.nii\.gz"):
        run(lively, tmp_path / "out", two, "--overwrite", "--figures")
    assert not (tmp_path / "out" / "figures" / "b.gif").exists()
    two.write_bytes(whole)
    before = (tmp_path / "out" / "a_mask.nii.gz").stat().st_mtime_ns
    run(lively, tmp_path / "out", one, two, "--skip-existing", "--figures")
    assert (tmp_path / "out" / "a_mask.nii.gz").stat().st_mtime_ns == before


def test_a_full_disk_keeps_earlier_masks(lively, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (name,) = run(lively, tmp_path / "out", image)
    mask = tmp_path / "out" / f"{name}_mask.nii.gz"
    before = mask.read_bytes()

    def full(*_: Any) -> None:
        with writing_errors(mask):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "save_prediction", full)
    with pytest.raises(WritingError, match=r"No space left on device.; earlier content is kept"):
        run(lively, tmp_path / "out", image, "--overwrite")
    assert mask.read_bytes() == before


def test_images_of_one_file_name_are_told_apart(lively, manifest: Path, tmp_path: Path) -> None:
    (image, *_) = (volume.image for volume in read_manifest(manifest).sections["validation"])
    shutil.copy(image, tmp_path / "good.nii.gz")
    for patient in ("p1", "p2"):
        (tmp_path / "in" / patient).mkdir(parents=True)
        image_of(np.zeros((32, 32, 3), np.float32), tmp_path / "in" / patient / "flair.nii.gz")
    with pytest.raises(ManifestError):
        run(lively, tmp_path / "out", tmp_path / "in", tmp_path / "good.nii.gz")
    failed = json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"]
    assert sorted(failed) == ["p1: flair.nii.gz", "p2: flair.nii.gz"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_end_no_run(lively, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / os.fsdecode(b"Gr\xf6sse")
    folder.mkdir()
    shutil.copy(read_manifest(manifest).sections["validation"][0].image, folder / "x.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert run(lively, Path("out"), Path(folder.name, "x.nii.gz"))["x"]["image"] == r"Gr\udcf6sse/x.nii.gz"


def test_a_map_that_is_gone_is_not_passed_over(lively, manifest: Path, tmp_path: Path) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    given = (image, "--tta", "--uncertainty", "--skip-existing")
    (name,) = run(lively, tmp_path / "out", *given)
    (tmp_path / "out" / f"{name}_uncertainty.nii.gz").unlink()
    with pytest.raises(ManifestError, match=f"{name}_mask.nii.gz belongs to another image, or was changed"):
        run(lively, tmp_path / "out", *given)


def test_volumes_that_no_prediction_built_stay(lively, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "volumes").mkdir(parents=True)
    (tmp_path / "out" / "volumes" / "mine_image.nii.gz").write_text("mine")
    with pytest.raises(PipelineError, match="volumes: holds volumes of no prediction"):
        run(lively, tmp_path / "out", next(phantoms.glob("PHANTOM*")))
    assert (tmp_path / "out" / "volumes" / "mine_image.nii.gz").read_text() == "mine"


def test_a_folder_s_name_is_no_part_of_other_words(
    lively, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.imaging.series import write_series

    voxels = load_image(read_manifest(manifest).sections["validation"][0].image)[..., 1].astype(np.int16)
    affine = AFFINE.copy()
    affine[2, 2] = 3.5
    for number, place in enumerate(("in/Ann", "in/Ben")):
        paths = write_series(tmp_path / place, voxels, affine, study=f"1.2.{number}")
    paths[3].unlink()
    monkeypatch.chdir(tmp_path)
    for folder, key in (("in", ["--pseudonymise", tmp_path / "key.csv"]), ("in", []), (".", [])):
        monkeypatch.chdir(tmp_path / "in" if folder == "." else tmp_path)
        out = tmp_path / f"out{len(key)}{folder}"
        with pytest.raises(ManifestError, match="slices are missing"):
            run(lively, out, folder, *key)
        (failed,) = json.loads((out / "predictions.json").read_text())["failed"].values()
        assert "slices lie 3.5 mm apart, but 7 mm at" in failed
        assert failed.endswith("slices are missing, or several volumes are mixed. Export the series again.")


def test_two_patients_may_have_one_image(lively, manifest: Path, tmp_path: Path) -> None:
    image = str(read_manifest(manifest).sections["validation"][0].image)
    (tmp_path / "list.json").write_text(
        json.dumps({"test": [{"image": image, "patient": "a"}, {"image": image, "patient": "b"}]})
    )
    assert list(run(lively, tmp_path / "out", tmp_path / "list.json")) == ["a", "b"]


def test_a_patient_who_cannot_be_known_is_refused_and_the_others_are_predicted(
    lively, manifest: Path, tmp_path: Path, capsys
) -> None:
    """The list of failed patients in the result file repeats no text from DICOM headers."""
    from tests.imaging.series import write_series

    voxels = load_image(read_manifest(manifest).sections["validation"][0].image)[..., 1].astype(np.int16)
    for place, study, description in (("Ann", 1, "FLAIR"), ("Ben/1", 2, "FLAIR"), ("Ben/2", 2, "FLAIR of Jane")):
        write_series(tmp_path / "in" / place, voxels, AFFINE, study=f"1.2.{study}", description=description)
    (tmp_path / "in" / "readme.txt").touch()
    for name, key in (("plain", []), ("key", ["--pseudonymise", tmp_path / "key.csv"])):
        with pytest.raises(ManifestError, match=r"^Ben: 2 series .*FLAIR of Jane") as caught:
            run(lively, tmp_path / name, tmp_path / "in", *key)
        assert list(caught.value.faults) == ["Ben"]
        assert "patients and other files: 3 found = 1 used + 1 skipped + 1 refused" in capsys.readouterr().out
        summary = json.loads((tmp_path / name / "predictions.json").read_text())
        assert summary["volumes"][0]["lesion_voxels"] > 0
        ben = pd.read_csv(tmp_path / "key.csv").set_index("patient").pseudonym["Ben"] if key else "Ben"
        assert summary["failed"] == {ben: "2 series that are FLAIR by description or parameters (expected one)"}
    assert (tmp_path / "plain" / "Ann_mask.nii.gz").is_file()


def test_the_table_names_masks_to_look_at_first() -> None:
    sure = Prediction("sure", 9, None, 1, 4, (), (), "sure.nii", "", agreement=0.95)
    doubtful = replace(sure, volume="doubtful", agreement=0.5)
    empty = replace(sure, volume="empty", lesion_voxels=0, agreement=None)
    assert "look" not in predictions_table([sure])
    assert predictions_table([sure, doubtful, empty]).splitlines()[-2:] == [
        "look first at the masks with an agreement under 0.89: doubtful",
        "no lesion found, look at these images: empty",
    ]
