import json

import pytest

from pipeline import datalist
from pipeline.errors import PipelineError

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
    manifest = datalist.read_manifest(save(content))
    assert manifest == datalist.read_manifest(tmp_path)
    first, second = manifest.sections["training"]
    assert (first.patient, first.fold, second.fold, first.lesion_voxels) == ("A", 1, 0, 3)
    assert first.image == tmp_path / "volumes" / "A_image.nii.gz"
    assert manifest.sections["validation"][0].fold is None
    assert manifest.sections["test"] == ()
    assert len(manifest.sha256) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no JSON"), ("[]", "no JSON object"), ('{"patients": {}}', "no 'counts'"), ("\xff", "no JSON")],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PipelineError, match=message):
        datalist.read_manifest(path)


def test_a_missing_manifest_says_how_to_build_one(tmp_path):
    with pytest.raises(PipelineError, match=r"python -m pipeline\.manifest"):
        datalist.read_manifest(tmp_path)


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
        datalist.read_manifest(save(content))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.nii.gz", "a/../../x", "", "C:/x", "..\\x"])
def test_paths_out_of_the_folder_are_refused(content, save, path):
    content["training"][0]["image"] = path
    with pytest.raises(PipelineError, match="leaves the folder"):
        datalist.read_manifest(save(content))


@pytest.mark.parametrize("section", ["training", "test"])
def test_case_30_a_patient_listed_twice(content, save, section):
    content[section].append(item("A"))
    with pytest.raises(PipelineError, match="A stands twice"):
        datalist.read_manifest(save(content))


def test_case_30_a_person_in_two_sections(content, save):
    content["training"].append(item("TCGA_CS_0001_20010101"))
    content["patients"]["TCGA_CS_0001_20010101"] = {"lesion_voxels": 0, **SHA}
    with pytest.raises(PipelineError, match=r"one person in two sections.*Build it again"):
        datalist.read_manifest(save(content))


def test_select(content, save):
    manifest = datalist.read_manifest(save(content))
    assert [v.patient for v in datalist.select(manifest, "training")] == ["A", "B"]
    assert len(datalist.select(manifest, "all")) == 3
    with pytest.raises(PipelineError, match="expected training"):
        datalist.select(manifest, "valid")


def test_case_31_an_empty_split(content, save):
    manifest = datalist.read_manifest(save(content))
    with pytest.raises(PipelineError, match=r"no patient in 'test' \(found: training 2, validation 1, test 0\)"):
        datalist.select(manifest, "test")


def test_a_missing_volume_is_named(content, save):
    volume = datalist.read_manifest(save(content)).sections["training"][0]
    with pytest.raises(PipelineError, match=r"A_image\.nii\.gz: cannot be read"):
        datalist.verify_volume(volume)


@pytest.mark.parametrize("patient", ["../../evil", "=cmd", "<script>", "a\\b", "", "x\n"])
def test_case_29_a_hostile_id_is_refused_before_it_names_a_file(content, save, patient):
    content["training"][0]["patient"] = patient
    content["patients"][patient] = content["patients"]["A"]
    with pytest.raises(PipelineError, match="the patient id"):
        datalist.read_manifest(save(content))
