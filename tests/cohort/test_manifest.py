"""A manifest is read as it was written. Paths out of its folder and persons in two sections are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cohort.listing import list_files
from pipeline.cohort.manifest import read_manifest, select, unchanged, verify_volume, write_manifest
from pipeline.errors import PipelineError
from tests.cohort.conftest import A, tree

SHA = {"image_sha256": "0" * 64, "label_sha256": "1" * 64}


def item(patient, **more):
    return {
        "image": f"volumes/{patient}_image.nii.gz",
        "label": f"volumes/{patient}_label.nii.gz",
        "patient": patient,
        **more,
    }


@pytest.fixture
def content():
    names = ("A", "B", "TCGA_CS_0001_19990101")
    return {
        "training": [item("A", fold=1), item("B", fold=0)],
        "validation": [item("TCGA_CS_0001_19990101")],
        "test": [],
        "counts": {"found": 6, "used": 6, "skipped": 0, "refused": 0},
        "patients": {name: {"lesion_voxels": 3, **SHA} for name in names},
    }


@pytest.fixture
def save(tmp_path):
    def _save(content):
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(content))
        return path

    return _save


def test_reads_a_file_or_its_folder(content, save, tmp_path):
    manifest = read_manifest(save(content))
    assert manifest == read_manifest(tmp_path) == read_manifest(str(tmp_path))
    first, second = manifest.sections["training"]
    assert (first.patient, first.fold, second.fold, first.lesion_voxels) == ("A", 1, 0, 3)
    assert first.image == tmp_path / "volumes" / "A_image.nii.gz"
    assert manifest.sections["validation"][0].fold is None
    assert manifest.sections["test"] == ()
    assert len(manifest.sha256) == 64
    assert manifest.folds == [0, 1]
    assert manifest.patients == content["patients"]
    assert manifest.raw == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"patients": {}}', "not a manifest .expected 'patients' and 'counts'"),
        ("\xff", "no JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PipelineError, match=message):
        read_manifest(path)


def test_a_missing_manifest_says_how_to_build_one(tmp_path):
    with pytest.raises(PipelineError, match=r"lgg-flair manifest"):
        read_manifest(tmp_path)


def change(content, how):
    first = content["training"][0]
    {
        "no section": lambda: content.pop("test"),
        "no label": lambda: first.pop("label"),
        "number as id": lambda: first.update(patient=3),
        "unknown patient": lambda: first.update(patient="C"),
        "text as fold": lambda: first.update(fold="1"),
        "no hash": lambda: content["patients"]["A"].pop("image_sha256"),
        "text as voxels": lambda: content["patients"]["A"].update(lesion_voxels="3"),
        "no object": lambda: content["training"].append("volumes/x.nii.gz"),
    }[how]()


@pytest.mark.parametrize(
    "how",
    [
        "no section",
        "no label",
        "number as id",
        "unknown patient",
        "text as fold",
        "no hash",
        "text as voxels",
        "no object",
    ],
)
def test_wrong_shapes_are_refused(content, save, how):
    change(content, how)
    with pytest.raises(PipelineError, match="Build it again"):
        read_manifest(save(content))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.nii.gz", "a/../../x", "", "C:/x", "..\\x"])
def test_paths_out_of_the_folder_are_refused(content, save, path):
    content["training"][0]["image"] = path
    with pytest.raises(PipelineError, match=r"leaves the folder of the manifest \(expected one below it\)"):
        read_manifest(save(content))


@pytest.mark.parametrize("section", ["training", "test"])
@pytest.mark.parametrize("patient", ["A", "a"])  # their masks have one name where a disk ignores case
def test_case_30_a_patient_listed_twice(content, save, section, patient):
    content["patients"]["a"] = content["patients"]["A"]
    content[section].append(item(patient))
    with pytest.raises(PipelineError, match=f"{patient} is listed twice"):
        read_manifest(save(content))


def test_case_30_a_person_in_two_sections(content, save):
    content["training"].append(item("TCGA_CS_0001_20010101"))
    content["patients"]["TCGA_CS_0001_20010101"] = {"lesion_voxels": 0, **SHA}
    with pytest.raises(PipelineError, match=r"one person in two sections.*Build it again"):
        read_manifest(save(content))


def test_select(content, save):
    manifest = read_manifest(save(content))
    assert [v.patient for v in select(manifest, "training")] == ["A", "B"]
    assert len(select(manifest, "all")) == 3
    with pytest.raises(PipelineError, match="expected training"):
        select(manifest, "valid")


def test_case_31_an_empty_split(content, save):
    manifest = read_manifest(save(content))
    with pytest.raises(PipelineError, match=r"no patient in 'test' \(found: training 2, validation 1, test 0\)"):
        select(manifest, "test")


def test_a_missing_volume_is_named(content, save):
    volume = read_manifest(save(content)).sections["training"][0]
    with pytest.raises(PipelineError, match=r"A_image\.nii\.gz: cannot be read"):
        verify_volume(volume)


@pytest.mark.parametrize("patient", ["../../evil", "=cmd", "<script>", "a\\b", "", "x\n"])
def test_case_29_a_hostile_id_is_refused_before_it_names_a_file(content, save, patient):
    content["training"][0]["patient"] = patient
    content["patients"][patient] = content["patients"]["A"]
    with pytest.raises(PipelineError, match="the patient id"):
        read_manifest(save(content))


# Written with its volumes ------------------------------------------------------------------------------------------


@pytest.fixture
def staged(content, tmp_path):
    """The volumes of ``content``, finished but not yet in place."""
    items = [one for section in ("training", "validation", "test") for one in content[section]]
    (tmp_path / "staging").mkdir()
    files = {name: tmp_path / "staging" / Path(name).name for one in items for name in (one["image"], one["label"])}
    for name, path in files.items():
        path.write_text(name)
    return files


@pytest.fixture
def put(root, out, tmp_path):
    """Write a manifest and its staged volumes into ``out``, as if built from ``root``."""
    out.mkdir()

    def _put(content, staged, options, earlier=None):
        write_manifest(out, content, staged, options, list_files(root), staging=tmp_path / "staging", earlier=earlier)

    return _put


def bytes_below(folder):
    return {name: found[1] for name, found in tree(folder).items()}


def test_volumes_and_manifest_are_put_in_place_and_are_known_again(content, staged, put, root, out):
    listing = list_files(root)
    put(content, staged, {"seed": 1})
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *staged,
        ".state.json",
        "manifest.json",
        "manifest.json.sha256",
    }
    assert all((out / name).read_text() == name for name in staged)
    manifest = read_manifest(out)
    assert manifest.raw == content
    assert (out / "manifest.json.sha256").read_text() == manifest.sha256
    assert unchanged(out, {"seed": 1}, listing)
    assert not unchanged(out, {"seed": 2}, listing)
    (root / A / f"{A}_1.tif").touch()
    assert not unchanged(out, {"seed": 1}, list_files(root))
    (out / "volumes" / "A_label.nii.gz").touch()
    assert not unchanged(out, {"seed": 1}, listing)


def test_volumes_that_are_no_longer_named_are_dropped(content, staged, put, out):
    put(content, staged, {})
    (out / "volumes" / "notes.txt").write_text("theirs")
    left = {**content, "training": content["training"][:1]}
    fewer = {name: path for name, path in staged.items() if "/B_" not in name}
    for name, path in fewer.items():
        path.write_text(name + " again")
    put(left, fewer, {}, earlier=read_manifest(out))
    assert [volume.patient for volume in read_manifest(out).sections["training"]] == ["A"]
    assert all((out / name).read_text() == name + " again" for name in fewer)
    assert {f"volumes/{path.name}" for path in (out / "volumes").iterdir()} == {*fewer, "volumes/notes.txt"}


def test_a_disk_that_refuses_leaves_the_earlier_manifest(content, staged, put, out, monkeypatch):
    put(content, staged, {})
    before = bytes_below(out)
    for name, path in staged.items():
        path.write_text(name + " again")
    replace = Path.replace

    def full(path, target):
        if target == out / "manifest.json":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PipelineError, match="No space left"):
        put({**content, "name": "x"}, staged, {}, earlier=read_manifest(out))
    before.pop(".state.json")  # it is removed first, so that the next build compares the content
    assert bytes_below(out) == before
