"""Every file in a folder is found once. Links out of it, pipes and unreadable files are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cohort.building import build_manifest
from pipeline.cohort.listing import counts_line, list_files, stamp
from pipeline.errors import PipelineError
from tests.cohort.conftest import A, B


def test_files_are_listed_in_a_fixed_order_with_size_and_time(root):
    found = list_files(root)
    assert list(found.slices) == sorted(str(path.relative_to(root)) for path in root.rglob("*.tif"))
    assert found.stamps == {path: stamp(root / path) for path in found.slices}
    assert (found.skipped, found.faults) == ({}, {})


def test_counts_are_one_line():
    counts = {"found": 6, "used": 3, "skipped": 2, "refused": 1}
    assert counts_line(counts) == "files: 6 found = 3 used + 2 skipped + 1 refused"


def test_case_08_junk_of_operating_systems(root, build):
    junk = [".DS_Store", f"{A}/._{A}_1.tif", "Thumbs.db", "__MACOSX/x/y_1.tif", ".git/deep/z_1.tif", "desktop.ini"]
    for name in [*junk, "data.csv", "README.txt"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    built = build()
    assert (built.used, built.skipped) == (18, 8)
    reasons = {entry["path"]: entry["reason"] for entry in built.manifest["skipped"]}
    assert reasons == list_files(root).skipped
    assert reasons["data.csv"] == "clinical table, not used"
    assert reasons["README.txt"] == "not a slice"


def test_case_26_links(root, build, refused, tmp_path):
    (tmp_path / "secret.tif").write_bytes(b"x")
    links = {
        "loop": root,
        f"{A}/up": root / A,
        "self_1.tif": root / "self_1.tif",
        "gone_1.tif": root / "nothing",
        f"{A}/{A}_4.tif": tmp_path / "secret.tif",
        "elsewhere": tmp_path,
        "annex.nii.gz": root / ".git" / "x.nii.gz",
    }
    (root / ".git").mkdir()
    (root / ".git" / "x.nii.gz").touch()
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert set(list_files(root).faults) == set(links)
    counts = refused(*(f"{name}: symbolic link" for name in links), "loop", "out of the source folder", "to nothing")
    assert counts.refused == 7 + 6
    assert build(skip_faulty=True).used == 12


def test_case_26_links_to_what_is_not_counted_are_faults(root, refused):
    for name, target in ((f"{A}_3.tif", "blob/x.dat"), (f"{A}_3_mask.tif", f".blob/{A}_3_mask.tif")):
        (root / target).parent.mkdir()
        (root / A / name).rename(root / target)
        (root / A / name).symlink_to(root / target)
    refused(f"{A}/{A}_3.tif: symbolic link to a file that is not counted", f"{A}_3_mask.tif: symbolic link")


def test_case_26_links_within_the_folder_are_skipped(root, build, tmp_path):
    (root / f"{A}_1.tif").symlink_to(root / A / f"{A}_1.tif")
    (root / "also").symlink_to(root / B)
    (tmp_path / "entry").symlink_to(root)
    built = build()
    assert (built.used, built.skipped) == (18, 2)
    assert build_manifest(tmp_path / "entry", tmp_path / "out2", split="none").content["counts"]["used"] == 18


def test_case_27_unreadable_file(root, refused, monkeypatch):
    read = Path.read_bytes

    def denied(path):
        if path.name == f"{A}_2.tif":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(f"{A}/{A}_2.tif: cannot be read (Permission denied)", "permissions")


def test_case_27_unreadable_folder(root, out, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if Path(path).name in {B, "__MACOSX"}:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (root / "__MACOSX").mkdir()
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PipelineError) as info:
        build_manifest(root, out, split="none")
    assert f"{B}: the folder cannot be read (Permission denied)" in str(info.value)
    assert info.value.__notes__ == ["files: 14 found = 12 used + 1 skipped + 1 refused"]
    assert not out.exists()


def test_case_27_pipes_are_not_opened(root, refused):
    os.mkfifo(root / A / f"{A}_4.tif")
    refused(f"{A}/{A}_4.tif: is a pipe")


@pytest.mark.parametrize("what", ["nothing there", "a file"])
def test_case_31_no_folder(tmp_path, out, what):
    path = tmp_path / "x"
    if what == "a file":
        path.write_text("x")
    with pytest.raises(PipelineError, match=rf"x: {what} \(expected a folder with slices or volumes\)"):
        build_manifest(path, out)
    assert not out.exists()
