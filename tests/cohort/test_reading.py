"""Every file in a folder is used, skipped or refused. An error leaves the patient out, and is reported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cohort.listing import list_files
from pipeline.cohort.reading import (
    FolderContent,
    build_images,
    find_slices,
    read_patients,
    slices_by_patient,
)
from pipeline.errors import ManifestError, PipelineError
from tests.cohort.conftest import A, B, C, add_patient, encoded, image, seed_of, tree, write


def test_patients_are_found_by_names_alone(root):
    for path in (root / A).glob("*_mask.tif"):
        path.write_bytes(b"")
    for number in (1, 2, 3):
        (root / B / f"{B}_{number}.tif").unlink()
    (root / "scan.tif").write_bytes(b"")
    (root / f"{A}_9.tif").symlink_to("nothing")
    patients, refused, faulty = slices_by_patient(list_files(root))
    assert {name: len(files) for name, files in patients.items()} == {A: 6, B: 3, C: 6}
    assert list(refused) == ["scan.tif", f"{A}_9.tif"]
    assert faulty == {A}


def test_a_folder_without_slices_has_no_patients_and_no_faults(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert slices_by_patient(list_files(tmp_path)) == ({}, {}, set())


def test_volumes_are_staged_until_a_fault_unless_it_may_be_skipped(root, tmp_path):
    (root / B / f"{B}_2.tif").write_bytes(b"")
    listing = list_files(root)
    for skip, staged in ((False, {A}), (True, {A, C})):
        found = read_patients(find_slices(root, listing), tmp_path / "staging", skip_faulty=skip)
        assert set(found.records) == {A, C}
        assert found.faulty == {B}
        assert {name for name, record in found.records.items() if record.image_sha256} == staged
        assert {path.name for path in (tmp_path / "staging").iterdir()} == {
            f"{name}_{kind}.nii.gz" for name in staged for kind in ("image", "label")
        }
        assert found.counts(listing) == {"found": 18, "used": 12, "skipped": 0, "refused": 6}
        assert len(found.hashes) == 18


def test_patients_can_be_refused_afterwards_by_id_or_path(root, tmp_path):
    listing = list_files(root)
    found = read_patients(find_slices(root, listing), tmp_path / "staging")
    for subject in (A, f"{A}/{A}_2_mask.tif"):
        left = found.without([subject], "changed")
        assert set(left.records) == {B, C}
        assert left.refused == dict.fromkeys(found.records[A].sources, "changed")
        assert left.counts(listing) == {"found": 18, "used": 12, "skipped": 0, "refused": 6}
    assert found.without([], "changed") == found
    assert set(found.records) == {A, B, C}


def test_files_that_do_not_add_up_are_a_fault_of_the_program(root):
    with pytest.raises(PipelineError, match="files do not add up: 18 found"):
        FolderContent().counts(list_files(root))


def test_case_28_names_that_differ_in_case_only(root, build, refused):
    add_patient(root, "Pat")
    add_patient(root, "pat")
    assert refused("Pat: ids differ only in case: Pat, pat").refused == 12
    assert build(skip_faulty=True).used == 18


def test_case_28_backslash_and_undecodable_names(root, refused):
    write(root / "a\\b_1.tif", image())
    (root / os.fsdecode(b"bad\xff_1.tif")).write_bytes(b"")
    assert refused("a\\b_1.tif: the patient id", "bad\\udcff_1.tif: the path has").refused == 2


@pytest.mark.parametrize("name", ["..\\x", "<script>alert(1)<", "=cmd", "-rf", "a\x1b[31m"])
def test_case_29_hostile_ids(root, out, refused, name):
    (root / f"{name}_1.tif").write_bytes(encoded(image()))
    refused("Rename")
    with pytest.raises(ManifestError) as info:
        build_images(root, out)
    assert "\x1b" not in str(info.value)


def test_case_29_a_name_without_number(root, refused):
    write(root / "scan.tif", image())
    refused("scan.tif: the name has no slice number (expected <patient>_<number>.tif")


def test_skip_faulty_leaves_whole_patients_out(root, build):
    (root / A / f"{A}_2.tif").write_bytes(b"")
    built = build(skip_faulty=True, split="none")
    assert (built.used, built.refused) == (12, 6)
    reasons = {entry["path"]: entry["reason"] for entry in built.manifest["refused"]}
    assert "0 bytes" in reasons[f"{A}/{A}_2.tif"]
    assert "left out" in reasons[f"{A}/{A}_1_mask.tif"]
    (message,) = built.messages
    assert message.startswith(f"left out: {A}/{A}_2.tif: 0 bytes")
    (warning,) = built.manifest["warnings"]
    assert (warning["patient"], warning["kind"]) == (None, "left out")
    assert warning["message"].startswith(f"{A}/{A}_2.tif: 0 bytes")


def test_all_faults_are_reported_at_once(root, refused):
    (root / A / f"{A}_2.tif").write_bytes(b"")
    (root / B / f"{B}_1_mask.tif").unlink()
    write(root / "scan.tif", image())
    counts = refused(f"{A}_2.tif: 0 bytes", f"{B}_1.tif: slice 1 has no mask", "scan.tif: the name")
    assert (counts.used, counts.refused) == (6, 12)


# Images without truth ----------------------------------------------------------------------------------------------


def test_images_are_built_without_masks(root, out, caplog):
    for path in (root / A).glob("*_mask.tif"):
        path.unlink()
    (root / B / f"{B}_1_mask.tif").write_bytes(b"no mask")
    caplog.set_level("INFO")
    build_images(root, out, names={A: "P0001"})
    assert {path.name for path in out.iterdir()} == {f"{name}_image.nii.gz" for name in ("P0001", B, C)}
    assert caplog.messages == ["files: 15 found = 9 used + 6 skipped + 0 refused"]
    volume = nib.load(out / "P0001_image.nii.gz").get_fdata()
    np.testing.assert_array_equal(volume, np.stack([image(seed_of(A, number)) for number in (1, 2, 3)], axis=2))


def test_an_image_volume_is_the_manifests(root, build, out, tmp_path):
    build()
    build_images(root, tmp_path / "images")
    for name in (A, B, C):
        file = f"{name}_image.nii.gz"
        assert (tmp_path / "images" / file).read_bytes() == (out / "volumes" / file).read_bytes()


def test_images_with_a_gap_are_refused_or_warned_of(root, out, caplog):
    (root / A / f"{A}_2.tif").unlink()
    with pytest.raises(ManifestError, match=r"slice\(s\) 2 missing between 1 and 3"):
        build_images(root, out)
    caplog.set_level("WARNING", logger="pipeline")  # a command of an earlier test may have set another level
    build_images(root, out, allow_gaps=True)
    assert caplog.messages == [f"{A}: gap: slice(s) 2 missing, neighbours are joined in the volume"]


def test_a_gap_of_many_patients_is_one_warning(root: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_patient(root, "P_4")
    for name in (A, B, C, "P_4"):
        (root / name / f"{name}_2.tif").unlink()
    caplog.set_level("WARNING", logger="pipeline")
    build_images(root, out, allow_gaps=True, names={A: "P0001"})
    gap = "gap: slice(s) 2 missing, neighbours are joined in the volume"
    assert caplog.messages == [f"P_4, P0001, {B} and 1 more (4 in all): {gap}"]


def test_a_fault_among_images_leaves_the_folder_as_it_was(root, out):
    build_images(root, out)
    before = tree(out)
    (root / B / f"{B}_2.tif").write_bytes(b"")
    (root / "gone_1.tif").symlink_to("nothing")
    with pytest.raises(ManifestError) as info:
        build_images(root, out)
    assert set(info.value.faults) == {f"{B}/{B}_2.tif", "gone_1.tif"}
    assert info.value.__notes__ == ["files: 19 found = 0 used + 9 skipped + 10 refused"]
    assert tree(out) == before
    assert json.dumps(sorted(before)) == json.dumps(sorted(f"{name}_image.nii.gz" for name in (A, B, C)))


def test_images_of_ids_that_differ_in_case_only_are_refused(root: Path, out: Path) -> None:
    add_patient(root, "Pat")
    add_patient(root, "pat")
    with pytest.raises(ManifestError, match="ids differ only in case: Pat, pat"):
        build_images(root, out)
    assert not list(out.rglob("*.nii.gz"))
