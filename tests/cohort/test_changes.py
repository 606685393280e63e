"""Files that changed or are missing since a manifest was built are reported by a build and by a verification."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.cohort import listing
from pipeline.cohort.building import build_manifest
from pipeline.cohort.changes import verify_manifest
from pipeline.cohort.manifest import read_manifest, select, verify_volume
from pipeline.errors import ManifestError, PipelineError
from tests.cohort.conftest import A, B, add_patient, image, tree, write


def test_case_12_bit_rot_in_a_volume(root, build, out):
    build()
    path = out / "volumes" / f"{B}_label.nii.gz"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError) as info:
        verify_manifest(root, out)
    for part in (path.name, "SHA-256", "--rebuild"):
        assert part in str(info.value)
    assert list(info.value.faults) == [B]
    volumes = {volume.patient: volume for volume in select(read_manifest(out), "all")}
    verify_volume(volumes[A])
    with pytest.raises(PipelineError, match=path.name):
        verify_volume(volumes[B])


def test_case_32_file_changed_after_the_manifest(root, build, refused, out):
    build()
    path = root / A / f"{A}_1.tif"
    original = path.read_bytes()
    write(path, image(99))
    assert refused(f"{A}/{A}_1.tif: changed since the manifest was built", "--rebuild").refused == 6
    assert refused("changed", skip_faulty=True).refused == 6
    with pytest.raises(ManifestError, match=f"{A}/{A}_1.tif: changed"):
        verify_manifest(root, out)
    path.write_bytes(b"")
    refused("0 bytes", "changed since")
    path.write_bytes(original)
    build()
    write(path, image(99))
    assert build(rebuild=True).is_new


def test_case_32_file_gone_after_the_manifest(root, build, refused, out):
    build()
    shutil.rmtree(root / A)
    refused(f"{A}: 6 file(s) missing since the manifest was built: {A}/{A}_1.tif", "and 1 more")
    with pytest.raises(ManifestError, match="missing since"):
        verify_manifest(root, out)
    assert build(rebuild=True, split="none").used == 12
    assert not list(out.glob(f"volumes/{A}*"))
    assert len(list(out.glob("volumes/*"))) == 4


def test_another_folder_does_not_replace_a_manifest(build, out, tmp_path):
    build()
    before = tree(out)
    other = tmp_path / "theirs"
    add_patient(other, "P")
    with pytest.raises(PipelineError, match="built from another folder"):
        build_manifest(other, out, split="none")
    assert tree(out) == before
    build_manifest(other, out, split="none", rebuild=True)
    assert len(list((out / "volumes").iterdir())) == 2


def test_unreadable_earlier_manifest(root, build, out):
    build()
    (out / "manifest.json").write_text("{")
    with pytest.raises(PipelineError, match="--rebuild"):
        build_manifest(root, out, split="none")
    assert build(rebuild=True).is_new


def test_verify_agrees_and_tells_of_new_files(root, build, out):
    build()
    before = tree(out)
    first, second = verify_manifest(root, out).splitlines()
    assert first == "verified: 18 source files and 6 volumes agree with the manifest"
    assert second == "files: 18 found = 18 used + 0 skipped + 0 refused"
    (root / "new.txt").write_text("x")
    assert "1 file(s) in the folder are not in the manifest" in verify_manifest(root, out)
    assert tree(out) == before


def test_verify_refuses_a_datalist_of_another_program(root, out):
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}))
    with pytest.raises(PipelineError, match=r"manifest\.json: a datalist of another program"):
        verify_manifest(root, out)


def test_verify_needs_a_manifest_and_names_missing_volumes(root, build, out, monkeypatch):
    with pytest.raises(PipelineError, match="no manifest"):
        verify_manifest(root, out)
    build()
    (out / "volumes" / f"{A}_image.nii.gz").unlink()
    monkeypatch.setattr(listing, "MAX_FILE_BYTES", 10)
    with pytest.raises(ManifestError) as info:
        verify_manifest(root, out)
    assert f"{A}_image.nii.gz: cannot be read" in str(info.value)
    slices = {str(path.relative_to(root)) for path in root.rglob("*.tif")}
    assert info.value.faults.keys() == {A, *slices}
    assert info.value.faults[f"{B}/{B}_1.tif"][0].startswith("cannot be read (3212 bytes, at most 10 are read). ")
    assert f"({len(slices)} in all): such as cannot be read (3212 bytes, at most 10 are read). " in str(info.value)
