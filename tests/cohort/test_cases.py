"""Names, folders and ``dataset.json`` show patient and role of each volume. Unclear names are errors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cohort.cases import Cases, find_cases
from pipeline.cohort.listing import list_files

END = ".nii.gz"


def found(root: Path, names: Iterable[str], *, content: Any = None, skip_unpaired: bool = False) -> Cases:
    """The cases of a folder of empty files. Their names are given without ``.nii.gz``."""
    for name in names:
        path = root / (name if "." in name else name + END)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if content is not None:
        (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return find_cases(root, list_files(root), skip_unpaired=skip_unpaired)


def files(cases: Cases) -> dict[str, dict[str, str]]:
    assert [case.fault for case in cases.cases.values() if case.fault] == []
    return {
        name: {role: path.removesuffix(END) for role, path in sorted(case.files.items())}
        for name, case in cases.cases.items()
    }


BIDS_ANAT, BIDS_MASK = "sub-1/ses-2/anat/sub-1_ses-2", "derivatives/x/sub-1/ses-2/sub-1_ses-2"
B = "BraTS-GLI-00001-000"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{B}/{B}-t2f", f"{B}/{B}-t1n", f"{B}/{B}-seg"], {B: {"flair": 0, "pre": 1, "label": 2}}),
        (["BraTS20_1_flair", "BraTS20_1_t1ce", "BraTS20_1_seg"], {"BraTS20_1": {"flair": 0, "post": 1, "label": 2}}),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_dseg"], {"sub-1_ses-2": {"flair": 0, "label": 1}}),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_ANAT}_label-lesion_mask"], {"sub-1_ses-2": {"flair": 0, "label": 1}}),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_FLAIR_mask"], {"sub-1_ses-2": {"flair": 0, "label": 1}}),
        (["x_image", "x_label", "y_image", "y_mask"], {"x": {"image": 0, "label": 1}, "y": {"image": 2, "label": 3}}),
        (["X_IMAGE", "X_LABEL", "Y/IMAGE", "Y/MASK"], {"X": {"image": 0, "label": 1}, "Y": {"image": 2, "label": 3}}),
        (["images/x", "labels/x"], {"x": {"image": 0, "label": 1}}),
        (["a/images/x_0001", "a/masks/x_0001"], {"x_0001": {"image": 0, "label": 1}}),
        (["images/x_flair", "images/x_t1", "labels/x"], {"x": {"flair": 0, "pre": 1, "label": 2}}),
        (["images/x_flair", "labels/x_flair"], {"x": {"flair": 0, "label": 1}}),
        (["rawdata/sub-1/anat/sub-1_FLAIR", "derivatives/sub-1_dseg"], {"sub-1": {"flair": 0, "label": 1}}),
        (["derivatives/labels/sub-1/anat/sub-1_dseg", "sub-1/anat/sub-1_FLAIR"], {"sub-1": {"flair": 1, "label": 0}}),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_label-L_desc-T1lesion_mask"], {"sub-1_ses-2": {"flair": 0, "label": 1}}),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_space-T1w_desc-Tumour_mask"], {"sub-1_ses-2": {"flair": 0, "label": 1}}),
        (["images/train/x", "labels/train/x"], {"x": {"image": 0, "label": 1}}),
        (["imagesTs/x", "labelsTs/x"], {"x": {"image": 0, "label": 1}}),
        (["P 1/flair", "P 1/mask"], {"P 1": {"flair": 0, "label": 1}}),
        (["P1/image.nrrd", "P1/label.nrrd"], {"P1": {"image": 0, "label": 1}}),
        (["brain_001_flair", "brain_001_seg"], {"brain_001": {"flair": 0, "label": 1}}),
        (["BrainTumor-7-t2f", "BrainTumor-7-seg"], {"BrainTumor-7": {"flair": 0, "label": 1}}),
        (["BrainTumor_flair", "BrainTumor_seg"], {"BrainTumor": {"flair": 0, "label": 1}}),
        (["brain1_flair", "brain1_mask"], {"brain1": {"flair": 0, "label": 1}}),
        (["sub-brain1_FLAIR", "sub-brain1_mask"], {"sub-brain1": {"flair": 0, "label": 1}}),
    ],
)
def test_names_tell_patients(tmp_path: Path, names: list[str], expected: dict[str, dict[str, int]]) -> None:
    cases = found(tmp_path, names)
    assert (cases.skipped, cases.faults) == ({}, {})
    assert files(cases) == {
        name: {role: names[number] for role, number in sorted(roles.items())} for name, roles in expected.items()
    }


def test_a_folder_of_one_patient_names_the_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = found(Path(), ["flair", "t1", "seg"])
    assert files(cases) == {tmp_path.name: {"flair": "flair", "label": "seg", "pre": "t1"}}


def test_the_lesions_mask_and_the_raw_image_are_taken(tmp_path: Path) -> None:
    names = [f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_desc-preproc_FLAIR", f"{BIDS_MASK}_label-lesion_mask"]
    cases = found(tmp_path, [*names, f"{BIDS_MASK}_label-edema_mask", f"{BIDS_MASK}_desc-brain_mask", "notes.txt"])
    assert files(cases) == {"sub-1_ses-2": {"flair": names[0], "label": names[2]}}
    assert cases.skipped == {
        "notes.txt": "not a volume",
        names[1] + END: f"derived from a raw image, {names[0]}{END} is used",
        f"{BIDS_MASK}_label-edema_mask{END}": "a mask of label-edema, not of a lesion",
        f"{BIDS_MASK}_desc-brain_mask{END}": "a mask of the brain",
    }


@pytest.mark.parametrize(
    "name",
    ["label-GM_mask", "desc-skullstrip_mask", "atlas-AAL_dseg", "label-GM_desc-flair_mask", "desc-lesionfill_mask"],
)
def test_a_mask_of_another_part_is_no_lesion(tmp_path: Path, name: str) -> None:
    image, other = f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_{name}"
    cases = found(tmp_path, [image, other])
    assert cases.skipped == {other + END: f"a mask of {name.rsplit('_', 1)[0]}, not of a lesion"}
    assert "has no mask" in cases.cases["sub-1_ses-2"].fault


@pytest.mark.parametrize("name", ["P/brain", "x_brain", "x_brain-parenchyma", "x_flair-brain", "brain_1_wholebrain"])
def test_a_mask_of_the_brain_is_skipped(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, [f"{name}_mask"]).skipped == {f"{name}_mask{END}": "a mask of the brain"}


def test_a_mask_of_one_time_point_is_not_paired_with_the_image_of_another(tmp_path: Path) -> None:
    cases = found(tmp_path, ["P1_T1_flair", "P1_T2_flair", "P1_T1_seg", "labels/P2_T1", "images/P2_T2_flair"])
    faults = {name: case.fault.partition(" (")[0] for name, case in cases.cases.items()}
    assert faults == {
        "P1": "patient P1 has no mask",
        "P1_T1": "patient P1_T1 has no FLAIR",
        "P2": "patient P2 has no mask",
        "P2_T1": "patient P2_T1 has no FLAIR",
    }


@pytest.mark.parametrize("sequence", ["flair", "t1ce", "t1c", "t1w", "t1n"])
def test_a_mask_may_name_the_sequence_that_it_was_drawn_on(tmp_path: Path, sequence: str) -> None:
    cases = found(tmp_path, ["P1/P1_flair", f"P1/P1_{sequence}_seg"])
    assert {name: case.fault for name, case in cases.cases.items()} == {"P1": ""}


def test_a_patient_has_one_name_however_its_letters_are_composed(tmp_path: Path) -> None:
    cases = found(tmp_path, ["Zoe\u0308_flair", "Zoe\u0308_seg", "P/Zoe\u0308/flair", "P/Zoe\u0308/seg"])
    assert {*cases.cases, *(patient for patient, _ in cases.owners.values())} == {"Zo\u00eb"}


def test_a_mask_that_names_the_lesion_comes_before_one_that_names_nothing(tmp_path: Path) -> None:
    names = [f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_desc-abnormality_mask", f"{BIDS_MASK}_dseg"]
    cases = found(tmp_path, names)
    assert files(cases) == {"sub-1_ses-2": {"flair": names[0], "label": names[1]}}
    assert cases.skipped == {names[2] + END: f"does not name the lesion, {names[1]}{END} is used"}


def test_a_t1_flair_is_no_image(tmp_path: Path) -> None:
    cases = found(tmp_path, ["images/x_T1_FLAIR", "labels/x_T1_FLAIR"])
    assert cases.skipped == {f"images/x_T1_FLAIR{END}": "its name says both T1 and FLAIR"}
    assert "no FLAIR" in cases.cases["x_T1_FLAIR"].fault


def test_an_exam_is_whole_without_what_is_of_its_name_elsewhere(tmp_path: Path) -> None:
    names = ["a/x_flair", "a/x_seg", "b/x_t1c"]
    cases = found(tmp_path, names, skip_unpaired=True)
    assert files(cases) == {"x": {"flair": names[0], "label": names[1]}}
    assert cases.skipped == {names[2] + END: "unpaired: patient x has no mask"}


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["a/x_flair", "a/x_seg", "b/x_t1c"], "of patient x in several folders: a/x_flair.nii.gz and b/x_t1c.nii.gz."),
        (
            ["a/x_flair", "b/x_seg"],
            "in several folders: a/x_flair.nii.gz and b/x_seg.nii.gz. Put the files of one exam",
        ),
        (["a/x_flair", "a/x_seg", "b/x_flair", "b/x_seg"], "a/x_flair.nii.gz and b/x_flair.nii.gz"),
        (["a/P/flair", "b/P/mask"], "of patient P in several folders"),
        (["a/sub-1/anat/sub-1_FLAIR", "b/sub-1/anat/sub-1_mask"], "of patient sub-1 in several folders"),
        (["sub-1/a/sub-1_FLAIR", "sub-1/b/sub-1_mask"], "of patient sub-1 in several folders"),
        (["sub-1/ses-1/anat/sub-1_FLAIR", "sub-1/ses-2/anat/sub-1_mask"], "of patient sub-1 in several folders"),
        (["a/derivatives/m/sub-1_mask", "b/sub-1/anat/sub-1_FLAIR"], "of patient sub-1 in several folders"),
        (["imagesTr/x", "labelsTs/x"], "of patient x in several folders"),
        (["a/images/x", "b/labels/x"], "of patient x in several folders"),
        ([f"{BIDS_ANAT}_FLAIR", f"{BIDS_MASK}_label-lesion_mask", f"{BIDS_MASK}_label-tumor_mask"], "it is not clear"),
        (
            ["imagesTr/x_0000", "labelsTr/x"],
            "channel 0 of one patient, and nothing shows which is FLAIR. Write dataset.json",
        ),
        (["x_image", "x_label", "x_mask"], "it is not clear which file is which: x_label.nii.gz and x_mask.nii.gz"),
        (["a/x_image", "b/x_image", "x_mask"], "a/x_image.nii.gz, b/x_image.nii.gz and x_mask.nii.gz"),
        (["x_image", "x_flair", "x_mask"], "x_flair.nii.gz and x_image.nii.gz"),
        (["imagesTr/x_0000", "imagesTr/x_0001", "labelsTr/x"], "nothing shows which is FLAIR. Write dataset.json"),
        (["=x_image", "=x_mask"], "the name '=x' starts with a character"),
        (["x_image"], "patient x has no mask (expected"),
        (["x_t1", "x_seg"], "patient x has no FLAIR (expected"),
    ],
)
def test_what_cannot_be_known_is_a_fault(tmp_path: Path, names: list[str], fault: str) -> None:
    (case,) = found(tmp_path, names).cases.values()
    assert fault in case.fault
    assert set(case.paths) == {name + END for name in names}


def test_what_stands_alone_is_skipped_on_request(tmp_path: Path) -> None:
    cases = found(tmp_path, ["x_image", "y_t1", "y_mask", "z_image", "z_mask"], skip_unpaired=True)
    assert set(cases.cases) == {"z"}
    assert cases.skipped == {
        f"x_image{END}": "unpaired: patient x has no mask",
        f"y_t1{END}": "unpaired: patient y has no FLAIR",
        f"y_mask{END}": "unpaired: patient y has no FLAIR",
    }


NNUNET = ["imagesTr/x_0000", "imagesTr/x_0001", "imagesTr/x_0002", "labelsTr/x", "imagesTs/y_0000"]


def test_channel_names_tell_the_sequences_of_nnunet(tmp_path: Path) -> None:
    cases = found(tmp_path, NNUNET, content={"channel_names": {"0": "T1Gd", "1": "T2", "2": "T2-FLAIR"}})
    assert files(cases) == {"x": {"post": NNUNET[0], "flair": NNUNET[2], "label": NNUNET[3]}}
    assert cases.skipped == {
        NNUNET[1] + END: "channel T2, not FLAIR or T1",
        NNUNET[4] + END: "test image without label",
        "dataset.json": "describes the folder",
    }


def test_a_datalist_names_pairs(tmp_path: Path) -> None:
    pair = {"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/y.nii.gz"}
    content = {"modality": {"0": "FLAIR", "1": "T2"}, "training": [pair], "test": ["./imagesTs/z.nii.gz"]}
    cases = found(tmp_path, ["imagesTr/x", "labelsTr/y", "imagesTs/z", "other_image", "other_mask"], content=content)
    assert files(cases)["x"] == {"image": "imagesTr/x", "label": "labelsTr/y"}
    assert cases.cases["x"].channels == {0: "FLAIR", 1: "T2"}
    assert cases.skipped[f"imagesTs/z{END}"] == "listed in 'test' without label"
    assert set(cases.cases) == {"x", "other"}


def test_a_datalist_of_nnunet_names_files_without_their_channel(tmp_path: Path) -> None:
    pair = {"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}
    content = {"modality": {"0": "FLAIR", "1": "T1", "2": "T2"}, "training": [pair], "test": ["./imagesTs/y.nii.gz"]}
    cases = found(tmp_path, NNUNET, content=content)
    assert files(cases) == {"x": {"flair": NNUNET[0], "pre": NNUNET[1], "label": NNUNET[3]}}
    assert cases.skipped == {
        NNUNET[2] + END: "channel T2, not FLAIR or T1",
        NNUNET[4] + END: "listed in 'test' without label",
        "dataset.json": "describes the folder",
    }


PAIR = {"image": "images/x.nii.gz", "label": "labels/x.nii.gz"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "no JSON object"),
        ("[1]", "no JSON object"),
        ({"training": {}}, "'training' is not a list (expected a list of image and label)"),
        ({"training": [{"image": 3}]}, "expected image and label"),
        ({"training": [PAIR, PAIR]}, "names images/x.nii.gz, labels/x.nii.gz twice"),
        (
            {"training": [{**PAIR, "label": "labels/gone.nii.gz"}]},
            "names labels/gone.nii.gz, which is not in the folder",
        ),
        ({"training": [{**PAIR, "image": "../x.nii.gz"}]}, "names ../x.nii.gz, which is not in the folder"),
        ({"modality": {"0": "T2"}, "training": [PAIR]}, "no channel FLAIR (found T2)"),
        ({"modality": {"0": "FLAIR", "1": "T1", "2": "T1w"}}, "two channels of one sequence"),
        ({"modality": ["FLAIR"]}, "expected numbers and names"),
    ],
)
def test_an_odd_datalist_is_a_fault(tmp_path: Path, content: Any, fault: str) -> None:
    cases = found(tmp_path, ["images/x", "labels/x"], content=content)
    assert fault in cases.faults["dataset.json"]
    assert "dataset.json" not in cases.skipped


def test_voxels_in_a_file_of_their_own_belong_to_the_patient(tmp_path: Path) -> None:
    (tmp_path / "x_image.mhd").write_text("NDims = 3\nElementDataFile = x_image.raw\n")
    (tmp_path / "x_mask.nhdr").write_text("NRRD0004\ndata file: voxels/x.raw.gz\n")
    (tmp_path / "y_image.mhd").write_text("ElementDataFile = LOCAL\n")
    cases = found(tmp_path, ["x_image.raw", "voxels/x.raw.gz", "y_mask"])
    assert set(cases.cases["x"].paths) == {"x_image.mhd", "x_mask.nhdr", "x_image.raw", "voxels/x.raw.gz"}
    assert set(cases.cases["y"].paths) == {"y_image.mhd", f"y_mask{END}"}
    assert cases.skipped == {}
