"""The inputs of a prediction are found, and unclear ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipeline.cohort.inputs import (
    Source,
    build_one,
    build_volume,
    find_inputs,
    name_sequences,
    write_segmentation_of,
)
from pipeline.cohort.manifest import read_manifest
from pipeline.cohort.sequences import Sequences
from pipeline.errors import ManifestError, PipelineError
from pipeline.imaging.nifti import load_image, nifti_bytes
from pipeline.scripts.volumes import AFFINE


def test_a_changed_volume_of_a_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "copy")
    volume = read_manifest(tmp_path / "copy").sections["training"][0]
    volume.image.write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
    with pytest.raises(PipelineError, match="changed since the manifest was built"):
        find_inputs([tmp_path / "copy"], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "nothing there"),
        ("text.txt", "no volume"),
        ("empty", r"no volume, DICOM or PATIENT_NUMBER.tif in it"),
    ],
)
def test_an_input_that_holds_no_volume_is_named(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "text.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=message):
        find_inputs([tmp_path / given], tmp_path / "out")


@pytest.mark.parametrize("name", ["..nii.gz", "_image.nii.gz", "=cmd_image.nii.gz", ".hidden_image.nii.gz"])
def test_names_that_are_no_ids_are_refused(tmp_path: Path, name: str) -> None:
    """Names of patients become names of folders and cells of tables."""
    (tmp_path / name).write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
    with pytest.raises(PipelineError, match=r"the name '.*' .* Rename the file"):
        find_inputs([tmp_path / name], tmp_path / "out")


def test_volumes_and_slices_in_one_folder_are_refused(slices, manifest: Path, tmp_path: Path) -> None:
    """It is not clear which file is meant, and no patient may be left out silently."""
    folder, _ = slices
    shutil.copy(read_manifest(manifest).sections["test"][0].image, folder / "new_image.nii.gz")
    with pytest.raises(PipelineError, match=r"holds 1 volumes and 2 patients in slices"):
        find_inputs([folder], tmp_path / "out")


def test_two_volumes_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for other in ("a", "A"):  # many disks ignore upper and lower case
        second = tmp_path / "deep" / f"{other}_image.nii.gz"
        for path in (tmp_path / "a_image.nii.gz", second):
            path.write_bytes(nifti_bytes(np.zeros((8, 8, 3, 3), np.uint8)))
        with pytest.raises(PipelineError, match=rf"two volumes are named a \(.*/a_image.nii.gz, .*{second.name}\)"):
            find_inputs([tmp_path], tmp_path / "out")
        second.unlink()


@pytest.fixture
def slices(phantoms: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Two patients' images as a folder of TIFFs without masks, and their ids."""
    patients = sorted(folder.name for folder in phantoms.iterdir() if folder.is_dir())[:2]
    for patient in patients:
        shutil.copytree(phantoms / patient, tmp_path / "in" / patient, ignore=shutil.ignore_patterns("*_mask.tif"))
    return tmp_path / "in", patients


def test_only_nameless_slices_are_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "nameless.tif").touch()
    with pytest.raises(ManifestError, match="the name has no slice number"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


def test_links_and_folders_that_cannot_be_followed_are_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = read_manifest(manifest).sections["validation"][0].image
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(image, tmp_path / "in" / "a_image.nii.gz")
    for name, target, reason in (
        ("b_image.nii.gz", image, "out of the source folder"),
        ("b_image.nii.gz", tmp_path / "nothing", "to nothing"),
        ("P2", image.parent, "out of the source folder"),
        ("P2", tmp_path / "in", "loop"),
        ("001.dcm", image, "out of the source folder"),
    ):
        link = tmp_path / "in" / name
        link.symlink_to(target)
        with pytest.raises(ManifestError, match=rf"{name}: symbolic link {reason}"):
            find_inputs([tmp_path / "in"], tmp_path / "out")
        link.unlink()
    listing = os.scandir

    def denied(path: Path | str = ".") -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PipelineError, match=r"sub: the folder cannot be read \(Permission denied\)"):
        find_inputs([tmp_path / "in"], tmp_path / "out")


def test_links_within_the_folder_are_followed_or_counted(tmp_path: Path) -> None:
    """In a data set of DataLad, each volume is a link to a hidden file."""
    folder = named(tmp_path / "in", "P1/flair.nii.gz", ".git/annex/x.nii.gz")
    (folder / "P2").mkdir()
    (folder / "P2" / "flair.nii.gz").symlink_to(folder / ".git/annex/x.nii.gz")
    (folder / "first").symlink_to(folder / "P1")
    found = find_inputs([folder], tmp_path / "out")
    assert list(found.sources) == ["P1", "P2"]
    assert {path.relative_to(folder).as_posix(): reason for path, reason in found.skipped.items()} == {
        ".git/annex/x.nii.gz": "hidden, or written by an operating system",
        "first": "link to a file or folder that is already counted",
    }
    (folder / "notes.txt").symlink_to(folder / ".git/annex/x.nii.gz")
    with pytest.raises(ManifestError, match=r"notes.txt: symbolic link to a file that is not counted"):
        find_inputs([folder], tmp_path / "out")


def test_every_file_is_counted(tmp_path: Path) -> None:
    """The file with the voxels of an MHD header belongs to it."""
    from tests.imaging.series import PLACES, save_itk, write_series

    voxels = np.ones((8, 8, 3), np.int16)
    folder = tmp_path / "in"
    (folder / ".hidden").mkdir(parents=True)
    save_itk(folder / "P_flair.mhd", voxels, PLACES)
    for name in ("readme.txt", ".hidden/notes", "Thumbs.db"):
        (folder / name).touch()
    found = find_inputs([folder], tmp_path / "out")
    hidden = "hidden, or written by an operating system"
    assert {path.name: reason for path, reason in found.skipped.items()} == {
        "readme.txt": "not a volume",
        "notes": hidden,
        "Thumbs.db": hidden,
    }
    write_series(tmp_path / "dicom", voxels, PLACES)
    (tmp_path / "dicom" / "readme.txt").touch()
    (tmp_path / "dicom" / "__MACOSX").mkdir()
    (tmp_path / "dicom" / "__MACOSX" / "._003_0001.dcm").touch()
    archive = Path(shutil.make_archive(str(tmp_path / "zip"), "zip", tmp_path / "dicom"))
    for place in (tmp_path / "dicom", archive):
        skipped = find_inputs([place], tmp_path / "out").skipped
        assert skipped == {place / "readme.txt": "not DICOM", place / "__MACOSX" / "._003_0001.dcm": hidden}


def test_slices_as_png_make_a_volume(tmp_path: Path) -> None:
    """Gray pictures hold FLAIR, and the number gives the position of the slice."""
    from PIL import Image

    voxels = np.random.default_rng(0).integers(1, 255, (16, 12, 11), dtype=np.uint8)
    for number in range(1, 12):
        Image.fromarray(voxels[..., number - 1]).save(tmp_path / f"P_{number}.png")
    (tmp_path / "notes.png").write_bytes(b"no slice")
    image = load_image(build_one(tmp_path, tmp_path / "out"))
    assert np.array_equal(image, np.stack([voxels] * 3, axis=-1))


def named(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        voxels = np.ones((6, 5, 4), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(nifti_bytes(voxels))
    return folder


def test_folders_of_brats_and_bids(tmp_path: Path) -> None:
    brats = named(tmp_path / "a", *(f"P1/P1-{kind}.nii.gz" for kind in ("t1n", "t1c", "t2f", "t2w", "seg")))
    bids = named(tmp_path / "b", "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    found = find_inputs([brats, bids], tmp_path / "out")
    assert list(found.sources) == ["P1", "sub-1"]
    sequences = found.sources["P1"].sequences
    assert sequences is not None
    assert [path.name for path in (sequences.pre, sequences.flair, sequences.post) if path] == [
        "P1-t1n.nii.gz",
        "P1-t2f.nii.gz",
        "P1-t1c.nii.gz",
    ]
    assert found.sources["sub-1"] == Source(bids / "sub-1/anat/sub-1_FLAIR.nii.gz")  # not built
    assert {path.name for path in found.skipped} == {"P1-t2w.nii.gz", "P1-seg.nii.gz", "sub-2_T1w.nii.gz"}


def test_a_sequence_that_flair_replaces_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``build_one`` warns too. Without any T1 there is no warning, because the networks need only FLAIR."""
    place = named(tmp_path / "sub-1", "sub-1_FLAIR.nii.gz", "sub-1_T1w.nii.gz")
    flair, t1 = place / "sub-1_FLAIR.nii.gz", place / "sub-1_T1w.nii.gz"
    for pre, post, expected in (
        (None, t1, ["no pre-contrast T1: FLAIR is used instead"]),
        (t1, None, ["no post-contrast T1: FLAIR is used instead"]),
        (t1, t1, []),
    ):
        (source,) = name_sequences([flair], pre, post, tmp_path / "out").sources.values()
        assert build_volume(source) == expected
    build_one(flair, tmp_path / "alone")
    assert not caplog.records
    build_one(place, tmp_path / "built")
    assert caplog.messages == [f"{place}: no post-contrast T1: FLAIR is used instead"]


def test_what_cannot_be_known_is_refused(tmp_path: Path) -> None:
    two = named(tmp_path / "two", "sub-1_run-1_FLAIR.nii.gz", "sub-1_run-2_FLAIR.nii.gz")
    with pytest.raises(ManifestError, match=r"sub-1: it is not clear which file is which: .*run-1.* and .*run-2"):
        find_inputs([two], tmp_path / "out")
    with pytest.raises(PipelineError, match=r"no file name says FLAIR \(found a.nii.gz, b.nii.gz\)"):
        find_inputs([named(tmp_path / "plain", "a.nii.gz", "b.nii.gz")], tmp_path / "out")
    with pytest.raises(PipelineError, match="a separate T1 file needs exactly one FLAIR file"):
        name_sequences([tmp_path / "a.nii", tmp_path / "b.nii"], tmp_path / "t1.nii", None, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a_T1w", "a", None), r"a_T1w\.nii\.gz: T1 by its name \(expected FLAIR\)"),
        (("a", "a_FLAIR", None), r"a_FLAIR\.nii\.gz: FLAIR by its name \(expected pre-contrast T1\)"),
        (("a", "a_t1ce", None), r"a_t1ce\.nii\.gz: post-contrast T1 by its name \(expected pre-contrast T1\)"),
        (("a", None, "a_t2f"), r"a_t2f\.nii\.gz: FLAIR by its name \(expected post-contrast T1\)"),
    ],
)
def test_sequences_that_are_swapped_are_refused(tmp_path: Path, names: tuple[str | None, ...], message: str) -> None:
    flair, pre, post = (tmp_path / f"{name}.nii.gz" if name else None for name in names)
    for path in filter(None, (flair, pre, post)):
        path.touch()
    with pytest.raises(PipelineError, match=message):
        name_sequences([flair], pre, post, tmp_path / "out")


def test_names_of_registered_images_are_no_swap(tmp_path: Path) -> None:
    """They name both sequences, and the options say which one it is."""
    for names in (("a_flair_to_t1", "a_t1_in_flair", "a_t1c_reg_flair"), ("a", "x", "a_t1")):
        flair, pre, post = (tmp_path / f"{name}.nii.gz" for name in names)
        for path in (flair, pre, post):
            path.touch()
        (found,) = name_sequences([flair], pre, post, tmp_path / "out").sources.values()
        assert found.sequences == Sequences(flair, pre, post)


def test_masks_in_their_folder_are_no_images(tmp_path: Path) -> None:
    image = named(tmp_path / "in" / "images", "P_image.nii.gz") / "P_image.nii.gz"
    named(tmp_path / "in" / "labels", "P_flair.nii.gz", "Q_image.nii.gz")
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert {name: source.image for name, source in found.sources.items()} == {"P": image}
    assert {path.name: why for path, why in found.skipped.items()} == dict.fromkeys(
        ("P_flair.nii.gz", "Q_image.nii.gz"), "in a folder of masks"
    )


def test_a_volume_has_one_name_with_and_without_t1(tmp_path: Path) -> None:
    flair, t1 = tmp_path / "P_image.nii.gz", tmp_path / "t1.nii.gz"
    for path in (flair, t1):
        path.touch()
    assert [*name_sequences([flair], t1, t1, tmp_path / "out").sources] == ["P"]
    assert [*find_inputs([flair], tmp_path / "out").sources] == ["P"]


def test_studies_are_named_by_their_folders(tmp_path: Path) -> None:
    from tests.imaging.series import write_series

    voxels = np.ones((8, 8, 3), np.int16)
    for number, patient in ((1, "Anna"), (2, "Ben")):
        write_series(tmp_path / "in" / patient / "s", voxels, AFFINE, study=f"1.2.3.{number}")
        write_series(
            tmp_path / "in" / patient / "t", voxels, AFFINE, study=f"1.2.3.{number}", description="T1", number=9
        )
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert list(found.sources) == ["Anna", "Ben"]
    assert sorted(set(found.skipped.values())) == ["series 9 (T1, 3 files), not FLAIR"]
    for source in found.sources.values():
        build_volume(source)
        assert np.asarray(nib.load(source.image).dataobj).shape == (8, 8, 3)
    shutil.copytree(tmp_path / "in", tmp_path / "more")
    with pytest.raises(PipelineError, match=r"two volumes are named Anna \(.*in/Anna/s, .*more/Anna/s\)"):
        find_inputs([tmp_path / "in", tmp_path / "more"], tmp_path / "out")


def test_a_series_is_asked_for_by_its_uid_among_all_inputs(tmp_path: Path) -> None:
    from tests.imaging.series import PLACES, one, write_series

    voxels = np.ones((8, 8, 3), np.int16)
    for number, patient in enumerate(("Anna", "Ben")):
        write_series(tmp_path / patient / "a", voxels, PLACES, study=f"1.2.{number}")
    write_series(tmp_path / "Ben" / "b", voxels, PLACES, study="1.2.1", number=4)
    given = [tmp_path / "Anna", tmp_path / "Ben"]
    uid = one(tmp_path / "Ben" / "b").uid
    found = find_inputs(given, tmp_path / "out", uid)
    assert {name: source.series[0] for name, source in found.sources.items()} == {
        "Anna": "a/003_0001.dcm",
        "Ben": "b/004_0001.dcm",
    }
    with pytest.raises(PipelineError, match=rf"--series {uid}1: no series with this UID \(found 3 others\)"):
        find_inputs(given, tmp_path / "out", f"{uid}1")


def test_a_patient_who_cannot_be_known_does_not_keep_others_out(tmp_path: Path) -> None:
    folder = named(tmp_path / "in", "A/A-t2f.nii.gz", "A/A_flair.nii.gz", "B/B-t2f.nii.gz")
    found = find_inputs([folder], tmp_path / "out")
    assert list(found.sources) == ["B"]
    assert list(found.refused) == ["A"]
    assert found.refused["A"].startswith("it is not clear which file is which: ")
    with pytest.raises(PipelineError, match=r"2 patients \(expected one\)"):
        build_one(folder, tmp_path / "out")
    with pytest.raises(PipelineError, match="two volumes are named A"):
        find_inputs([folder, named(tmp_path / "more", "A/flair.nii.gz")], tmp_path / "out")


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_only_the_files_of_a_study_s_flair_are_opened_again(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zip is unpacked once to find FLAIR, and then only for each study's own files."""
    from tests.imaging.series import write_series

    place, voxels = tmp_path / "in", np.ones((8, 8, 3), np.int16)
    for number, patient in enumerate(("Anna", "Ben", "Cleo")):
        for series, description in ((3, "FLAIR"), (9, "T1")):
            folder = place / patient / description
            write_series(folder, voxels, AFFINE, study=f"1.2.3.{number}", number=series, description=description)
    if zipped:
        place = Path(shutil.make_archive(str(tmp_path / "in"), "zip", place))
    opened: list[str] = []
    read, unzip = pydicom.dcmread, zipfile.ZipFile.open

    def counted(path: Path, *args: object, **kwargs: object) -> object:
        opened.append(path.name if zipped else path.relative_to(place).as_posix())
        return read(path, *args, **kwargs)

    def unzipped(self: zipfile.ZipFile, entry: zipfile.ZipInfo, *args: object, **kwargs: object) -> object:
        opened.append(entry.filename)
        return unzip(self, entry, *args, **kwargs)

    monkeypatch.setattr(pydicom, "dcmread", counted)
    monkeypatch.setattr(zipfile.ZipFile, "open", unzipped)
    sources = find_inputs([place], tmp_path / "out").sources
    for name, source in sources.items():
        own = [f"{name}/FLAIR/003_{z:04}.dcm" for z in (1, 2, 3)]
        for step in (
            lambda source=source: build_volume(source),
            lambda source=source: write_segmentation_of(source, np.ones((8, 8, 3), np.uint8), tmp_path / "seg.dcm"),
        ):
            opened.clear()
            step()
            numbers = {"000000", "000001", "000002"} if zipped else set()  # names of the unpacked files
            assert set(opened) == {*own, *numbers}


def test_a_folder_with_a_dicomdir_is_read(tmp_path: Path) -> None:
    """On a patient's disc, DICOMDIR lists the files, whose names have no suffix."""
    from pydicom.fileset import FileSet

    from tests.imaging.series import write_series

    voxels = np.random.default_rng(0).integers(1, 900, (8, 8, 3), dtype=np.int16)
    disc = FileSet()
    for number in (1, 2):
        for path in write_series(tmp_path / "files", voxels, AFFINE, study=f"1.2.3.{number}", PatientID=str(number)):
            disc.add(path)
    disc.write(tmp_path / "in")
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert list(found.sources) == ["PT000000", "PT000001"]
    assert {path.name: reason for path, reason in found.skipped.items()} == {"DICOMDIR": "no image (DICOMDIR)"}
    for source in found.sources.values():
        build_volume(source)
        assert np.asarray(nib.load(source.image).dataobj).sum() == voxels.sum()


def test_results_below_a_folder_are_no_patients(tmp_path: Path) -> None:
    """Some pictures are named slice_003.png, like slices of a patient."""
    from PIL import Image

    (tmp_path / "out" / ".finished").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "P").mkdir(parents=True)
    for place in (tmp_path / "P_1.png", tmp_path / "P_2.png", tmp_path / "out" / "figures" / "P" / "slice_003.png"):
        Image.fromarray(np.ones((8, 8), np.uint8)).save(place)
    (tmp_path / "out" / "volumes").mkdir()
    (tmp_path / "out" / ".built_volumes").touch()
    for name in ("P_mask", "volumes/P_image"):
        (tmp_path / "out" / f"{name}.nii.gz").write_bytes(nifti_bytes(np.ones((8, 8, 2), np.uint8)))
    for out in ("out", "other"):
        found = find_inputs([tmp_path], tmp_path / out)
        assert list(found.sources) == ["P"]
        assert [*found.slice_folders] == [tmp_path]


def test_images_beside_results_are_patients(tmp_path: Path) -> None:
    """As after ``predict in -o in``; and an evaluation's copies of images are none."""
    files = ("a_image", "a_mask", "a_uncertainty", "volumes/b_image", "scores/volumes/a_image", "scores/masks/a_mask")
    (tmp_path / "in" / "scores" / ".finished").mkdir(parents=True)
    (tmp_path / "in" / "scores" / "summary.json").touch()
    (tmp_path / "in" / ".finished").mkdir()
    for name in files:
        path = tmp_path / "in" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nifti_bytes(np.ones((8, 8, 2), np.uint8)))
    for folder in ("in", "."):
        found = find_inputs([tmp_path / folder], tmp_path / "in")
        assert list(found.sources) == ["a", "b"]
        results = [path.name for path, reason in found.skipped.items() if reason == "a result of predict or evaluate"]
        assert sorted(results) == ["a_image.nii.gz", "a_mask.nii.gz", "a_mask.nii.gz", "a_uncertainty.nii.gz"]


@pytest.mark.parametrize("out", [".", "in"])
def test_results_may_lie_in_or_above_the_folder_of_the_images(out: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "P_image.nii.gz").write_bytes(nifti_bytes(np.ones((8, 8, 2), np.uint8)))
    assert list(find_inputs([tmp_path / "in"], tmp_path / out).sources) == ["P"]


def test_a_datalist_needs_no_labels(tmp_path: Path) -> None:
    """A test section of MONAI and nnU-Net may hold only paths. MONAI's Auto3DSeg writes another section."""
    data = named(tmp_path / "data", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz", "c_image.nii.gz")
    lists = {
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "fold": 0}],
        "test": ["./imagesTs/b.nii.gz"],
        "testing": [{"image": str(data / "c_image.nii.gz")}],
    }
    (data / "LIST.json").write_text(json.dumps(lists))
    found = find_inputs([data / "LIST.json"], tmp_path / "out")
    images = {"a": data / "imagesTr/a.nii.gz", "b": data / "imagesTs/b.nii.gz", "c": data / "c_image.nii.gz"}
    assert found.sources == {name: Source(image) for name, image in images.items()}
    (data / "capitals.json").write_text('{"test": ["D_IMAGE.NII.GZ"]}')
    assert list(find_inputs([data / "capitals.json"], tmp_path / "out").sources) == ["D"]
    assert list(find_inputs([named(tmp_path / "capitals", "D_IMAGE.NII.GZ")], tmp_path / "out").sources) == ["D"]
    (data / "manifest.json").write_text(json.dumps({"test": lists["test"]}))
    assert list(find_inputs([data], tmp_path / "out").sources) == ["b"]
    wrong = {
        '{"name": "x"}': "not a manifest .expected 'patients' and 'counts', or the lists of a Decathlon datalist",
        '{"training": [], "test": {}}': r"'test' is not a list .expected a list of images.. Correct the file",
        '{"test": [{"label": "a.nii.gz"}]}': "expected image and label, each a path",
        '{"test": ["a.nii.gz", "deep/a.nii.gz"]}': "two volumes are named a",
        '{"test": []}': "no volume in it",
    }
    for text, message in wrong.items():
        (data / "LIST.json").write_text(text)
        with pytest.raises(PipelineError, match=message):
            find_inputs([data / "LIST.json"], tmp_path / "out")


def test_the_images_of_a_manifest_do_without_its_labels(manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(manifest, tmp_path / "copy")
    volumes = read_manifest(tmp_path / "copy").volumes
    for volume in volumes:
        volume.label.unlink()
    found = find_inputs([tmp_path / "copy"], tmp_path / "out").sources
    assert found == {volume.patient: Source(volume.image) for volume in volumes}


@pytest.mark.parametrize("given", [".", "..", "../Anna", "../Anna/", "sub/.."])
def test_a_folder_names_its_patient_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    from tests.imaging.series import write_series

    for kind in ("volumes", "dicom"):
        folder = tmp_path / kind / "Anna"
        (folder / "sub").mkdir(parents=True)
        if kind == "volumes":
            named(folder, "flair.nii.gz", "t1.nii.gz")
        else:
            write_series(folder, np.ones((8, 8, 3), np.int16), AFFINE)
        monkeypatch.chdir(folder / "sub" if given == ".." else folder)
        assert list(find_inputs([Path(given)], tmp_path / "out").sources) == ["Anna"]


@pytest.mark.parametrize("name", ["t1gd.nii.gz", "x_t1n.nii", "sub-1_T1w.nii.gz", "x_T1_FLAIR.nii.gz"])
def test_a_file_that_is_called_t1_is_not_taken_for_flair(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(PipelineError, match=r"T1 by its name \(expected FLAIR\)"):
        find_inputs([tmp_path / name], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "kind"), [("sub-01_T2w.nii.gz", "T2w"), ("x-seg.nii.gz", "seg"), ("flair_mask.nii", "mask")]
)
def test_other_images_and_masks_are_no_flair(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(PipelineError, match=rf"{kind} by its name \(expected FLAIR\)"):
        find_inputs([tmp_path / name], tmp_path / "out")
