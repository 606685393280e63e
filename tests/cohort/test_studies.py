"""A DICOM study is named after its folders. A study with unclear FLAIR is refused, and the others are used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.cohort.studies import Studies, find_studies
from pipeline.errors import PipelineError
from tests.imaging.series import PLACES, edit, one, write_series

VOXELS = np.ones((8, 8, 3), np.int16)


def studies_of(folder: Path, wanted: str | None = None) -> Studies:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return find_studies(folder, files, wanted)


def write(folder: Path, *places: str) -> Path:
    """Write a study with one FLAIR series into each folder."""
    for number, place in enumerate(places):
        write_series(folder / place, VOXELS, PLACES, study=f"1.2.{number}")
    return folder


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["disc/DICOM/PA1/ST1/SE1", "disc/DICOM/PA2/ST1/SE1"], ["PA1", "PA2"]),
        (["P1/2019", "P1/2020", "P2/2020"], ["P1_2019", "P1_2020", "P2"]),
        (["P1/a/1", "P1/a/2", "P1/b"], ["a_1", "a_2", "b"]),
        (["x/y"], ["in"]),
    ],
)
def test_studies_are_named_by_the_folders_that_tell_them_apart(
    places: list[str], names: list[str], tmp_path: Path
) -> None:
    assert sorted(studies_of(write(tmp_path / "in", *places)).flair) == names


def test_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "Anna", "Ben", "Cleo/a")
    write_series(folder / "Cleo" / "a", VOXELS, PLACES, study="1.2.9", number=4)
    found = studies_of(folder)
    assert list(found.flair) == ["Anna", "Ben"]
    assert found.refused["Cleo_a"].startswith(
        "2 studies without a folder each (expected one study per folder). Sort them"
    )
    write_series(folder / "Anna", VOXELS, PLACES, study="1.2.1", number=11)  # the same study as Ben's
    found = studies_of(folder)
    assert (found.flair, list(found.refused)) == ({}, ["Anna", "in", "Cleo_a"])


def test_folders_whose_joined_names_are_one_are_refused(tmp_path: Path) -> None:
    found = studies_of(write(tmp_path, "P1_2019", "P1/2019", "P1/2020"))
    assert (list(found.flair), list(found.refused)) == (["P1_2020"], ["P1_2019"])
    assert found.refused["P1_2019"].startswith("2 studies without a folder each")


def test_a_patient_of_damaged_files_alone_is_refused_at_any_depth(tmp_path: Path) -> None:
    folder = write(tmp_path, "disc/P1", "disc/P2", "disc/P3")
    for path in (folder / "disc" / "P3").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    found = studies_of(folder)
    assert (sorted(found.flair), list(found.refused)) == (["P1", "P2"], ["P3"])


def test_a_patient_of_damaged_files_alone_is_refused_beside_a_single_study(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "A")
    (folder / "B").mkdir()
    (folder / "B" / "1.dcm").touch()
    found = studies_of(folder)
    assert list(found.flair) == ["in"]
    assert found.refused == {"B": "1 damaged DICOM file(s) and no other: B/1.dcm. Export the series again."}


def test_a_study_with_two_flairs_is_refused_until_one_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, "P0", "P1/a", "P2")
    write_series(folder / "P1" / "b", VOXELS, PLACES, study="1.2.1", number=7, description="Jane's FLAIR")
    uid = one(folder / "P1" / "b").uid
    found = studies_of(folder)
    assert list(found.flair) == ["P0", "P2"]
    assert f"7 (Jane's FLAIR, 3 files), UID {uid}. Choose one with --series UID" in found.refused["P1"]
    assert "Jane" not in found.refused["P1"].partition(":")[0]
    found = studies_of(folder, uid)
    assert found.flair["P1"] == ("P1/b/007_0001.dcm", "P1/b/007_0002.dcm", "P1/b/007_0003.dcm")
    assert (list(found.flair), found.refused) == (["P0", "P1", "P2"], {})
    with pytest.raises(PipelineError, match=r"3 studies \(expected one with --series NUMBER\). .* a series' UID"):
        studies_of(folder, "7")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda _: b"", "0 bytes"),
        (lambda whole: whole[:300], "it ends within the header"),
        (lambda whole: whole[132:], "it does not begin as a DICOM file does"),
        (lambda _: b"<html>", "it does not begin as a DICOM file does"),
    ],
    ids=["empty", "cut", "no preamble", "HTML"],
)
@pytest.mark.parametrize("name", ["003_0003.dcm", "IM3", "1.2.840.3", "A.IMA"])
def test_a_series_is_not_used_short_of_a_slice_that_is_damaged(
    name: str, content: Callable[[bytes], bytes], why: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "in", "P1/a", "P2")
    last = folder / "P1" / "a" / "003_0003.dcm"
    data = content(last.read_bytes())
    last.unlink()
    last.with_name(name).write_bytes(data)
    found = studies_of(folder)
    assert list(found.flair) == ["P2"]
    assert found.refused["P1"].startswith(f"1 damaged file(s) beside the series: P1/a/{name} ({why}). Export")


def test_damaged_files_elsewhere_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "P1/a", "P2")
    for name in ("P1/t1/1.dcm", "P1/readme", "P1/a/notes.txt", "P3/x/1.dcm", "P3/x/2.dcm", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"text")
    found = studies_of(folder)
    assert list(found.flair) == ["P1", "P2"]
    assert found.refused == {
        "P3": "2 damaged DICOM file(s) and no other: P3/x/1.dcm, P3/x/2.dcm. Export the series again."
    }
    assert found.skipped["P1/t1/1.dcm"] == "damaged, it does not begin as a DICOM file does"
    assert {name for name, why in found.skipped.items() if why == "not DICOM"} == {
        "P1/readme",
        "P1/a/notes.txt",
        "LICENSE",
    }


def test_a_file_that_may_not_be_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", "P1")

    def denying(opened: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, *args: object, **options: object) -> object:
            if path.name == "003_0003.dcm":
                raise PermissionError(13, "Permission denied")
            return opened(path, *args, **options)

        return call

    monkeypatch.setattr(Path, "open", denying(Path.open))
    monkeypatch.setattr(pydicom, "dcmread", denying(pydicom.dcmread))
    assert "003_0003.dcm ([Errno 13] Permission denied)" in studies_of(folder).refused["in"]


def test_copies_are_reported_and_equal_numbers_alone_are_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "s")
    for path in (folder / "s").iterdir():
        edit(path, lambda header: setattr(header, "SOPInstanceUID", "1.2.3"))  # as a careless program writes it
    assert list(studies_of(folder).flair) == ["in"]
    shutil.copytree(folder / "s", folder / "s" / "copy")
    message = studies_of(folder).refused["in"]
    assert message.startswith("3 image(s) exist twice: for example s/003_0001.dcm and s/copy/003_0001.dcm. Remove")
