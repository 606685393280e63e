"""A folder becomes a manifest and volumes, all or none of them, with the same bytes for the same files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

from pipeline.cohort.building import build_manifest
from pipeline.errors import PipelineError
from tests.cohort.conftest import SPLIT, A, B, Built, C, add_patient, image, tree, write


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: (path / "x").mkdir(parents=True)])
def test_case_31_empty_root(tmp_path, out, make):
    empty = tmp_path / "empty"
    make(empty)
    with pytest.raises(PipelineError, match=r"no slice among 0 file\(s\)") as info:
        build_manifest(empty, out)
    assert info.value.__notes__ == ["files: 0 found = 0 used + 0 skipped + 0 refused"]
    assert not out.exists()


def test_case_28_unicode_and_spaces_work(root, build, out):
    add_patient(root, "Žofie Müller 患者")
    built = build()
    items = [item for key in ("training", "validation") for item in built.manifest[key]]
    assert "Žofie Müller 患者" in {item["patient"] for item in items}
    assert all((out / item["image"]).is_file() for item in items)


def test_output_inside_the_source_is_refused(root):
    before = tree(root)
    with pytest.raises(PipelineError, match="inside the source folder"):
        build_manifest(root, root / "out")
    assert tree(root) == before


# What a build writes -----------------------------------------------------------------------------------------------


def test_manifest_holds_hashes_of_sources_and_volumes(root, build, out):
    built = build()
    assert built.is_new
    assert built.messages == ()
    for name, info in built.manifest["patients"].items():
        for path, expected in info["sources"].items():
            assert hashlib.sha256((root / path).read_bytes()).hexdigest() == expected
        for kind in ("image", "label"):
            data = (out / "volumes" / f"{name}_{kind}.nii.gz").read_bytes()
            assert hashlib.sha256(data).hexdigest() == info[f"{kind}_sha256"]
    listed = hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    assert (out / "manifest.json.sha256").read_text() == listed


def test_monai_reads_it(build, out):
    build(folds=2, test_fraction=0.3)
    for section in ("training", "validation", "test"):
        (item,) = load_decathlon_datalist(out / "manifest.json", True, section)
        assert Path(item["image"]).is_file()
        assert Path(item["label"]).is_file()
        assert set(item) - {"fold"} == {"image", "label", "patient"}
        assert ("fold" in item) == (section != "test")
        assert item["patient"] in {A, B, C}


def test_two_builds_give_the_same_bytes(root, build, out, tmp_path):
    build(folds=3)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    other = tmp_path / "other"
    build_manifest(copy, other, folds=3, **SPLIT)
    ours, theirs = ({p: v[1] for p, v in tree(d).items() if p != ".state.json"} for d in (out, other))
    assert ours == theirs
    text = (out / "manifest.json").read_text() + (out / ".state.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


# A second build ----------------------------------------------------------------------------------------------------


def test_second_run_writes_nothing(build, out):
    first = build()
    before = tree(out)
    second = build()
    assert not second.is_new
    assert second.manifest == first.manifest
    assert tree(out) == before


def test_second_run_clears_what_a_kill_left(build, out):
    build()
    (out / ".building" / "before").mkdir(parents=True)
    assert not build().is_new
    assert not (out / ".building").exists()


def test_second_run_with_left_out_patients_writes_nothing(root, build, out):
    (root / A / f"{A}_1.tif").write_bytes(b"")
    (root / "gone_1.tif").symlink_to("nothing")
    build(skip_faulty=True)
    before = tree(out)
    assert not build(skip_faulty=True).is_new
    assert tree(out) == before


def test_touched_source_is_accepted_and_touched_volume_is_rebuilt(root, build, out):
    build()
    before = (out / "manifest.json").read_bytes()
    (root / A / f"{A}_1.tif").touch()
    assert build().is_new
    volume = out / "volumes" / f"{A}_label.nii.gz"
    volume.write_bytes(b"rot")
    built = build()
    assert built.is_new
    assert hashlib.sha256(volume.read_bytes()).hexdigest() == built.manifest["patients"][A]["label_sha256"]
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("state", [None, b"{", b"[]", b"{}"])
def test_without_a_usable_state_the_content_decides(root, build, refused, out, state):
    build()
    (out / ".state.json").unlink()
    if state is not None:
        (out / ".state.json").write_bytes(state)
    write(root / A / f"{A}_1.tif", image(99))
    refused("changed since")


def test_added_patient_and_other_options_rebuild(root, build):
    build()
    add_patient(root, "P")
    assert build().used == 24
    built = build(seed=4, folds=2)
    assert built.manifest["split"] == {
        "method": "random",
        "seed": 4,
        "validation_fraction": 0.3,
        "test_fraction": 0.0,
        "folds": 2,
    }


def test_a_changed_split_is_said(build):
    assert build(split="none").messages == ()
    assert build(seed=5, split="none").messages == ()
    (message,) = build().messages
    assert message.startswith("split changed: 3 patients are in another section")


def test_a_datalist_of_another_program_and_its_files_stay(root, out, tmp_path):
    """Its paths may lead to images that nobody has copied."""
    image, label = tmp_path / "hospital.nii.gz", tmp_path / "hospital_seg.nii.gz"
    image.touch()
    label.touch()
    out.mkdir()
    content = json.dumps({"training": [{"image": str(image), "label": str(label)}]})
    (out / "manifest.json").write_text(content)
    for rebuild in (False, True):
        with pytest.raises(PipelineError, match=r"manifest.json: a datalist of another program. Choose another --out"):
            build_manifest(root, out, rebuild=rebuild, **SPLIT)
    assert image.is_file()
    assert label.is_file()
    assert (out / "manifest.json").read_text() == content


def test_volumes_of_no_manifest_stay(root, out):
    (out / "volumes").mkdir(parents=True)
    (out / "volumes" / f"{A}_image.nii.gz").touch()
    with pytest.raises(PipelineError, match="volumes: holds files of no manifest"):
        build_manifest(root, out, **SPLIT)
    assert (out / "volumes" / f"{A}_image.nii.gz").read_bytes() == b""


# Builds that fail --------------------------------------------------------------------------------------------------


def test_a_failed_run_leaves_the_old_manifest(root, build, refused):
    build()
    write(root / "P" / "P_1.tif", image())
    refused("P_1.tif")


def test_full_disk_while_staging_is_one_message(root, out, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PipelineError, match="No space left"):
        build_manifest(root, out, split="none")
    assert not out.exists()


def test_two_runs_at_once_are_refused(root, out):
    fcntl = pytest.importorskip("fcntl")
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(PipelineError, match="another run"):
            build_manifest(root, out, split="none")
    finally:
        os.close(handle)


# Real patients -----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("LGG_ROOT" not in os.environ, reason="LGG_ROOT does not name the published folder kaggle_3m")
def test_published_patients():
    source = Path(os.environ["LGG_ROOT"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        built = Built(build_manifest(source, out, split="none"), (), source, out)
        assert built.refused == 0
        for name, info in built.manifest["patients"].items():
            volume = np.asarray(nib.load(out / "volumes" / f"{name}_image.nii.gz").dataobj)
            label = np.asarray(nib.load(out / "volumes" / f"{name}_label.nii.gz").dataobj)
            depth = len(info["sources"]) // 2
            assert info["shape"] == [256, 256, depth]
            assert volume.shape == (256, 256, depth, 3)
            for index in (0, depth // 2, depth - 1):
                stem = source / name / f"{name}_{index + 1}"
                np.testing.assert_array_equal(volume[:, :, index], np.asarray(Image.open(f"{stem}.tif")))
                np.testing.assert_array_equal(label[:, :, index], np.asarray(Image.open(f"{stem}_mask.tif")) // 255)
