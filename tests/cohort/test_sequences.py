"""Names of volume files give patient and sequence."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cohort.sequences import Sequences, group, role_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS-GLI-00001-000-t2f.nii.gz", ("BraTS-GLI-00001-000", "flair")),
        ("BraTS-GLI-00001-000-t1n.nii.gz", ("BraTS-GLI-00001-000", "pre")),
        ("BraTS-GLI-00001-000-t1c.nii.gz", ("BraTS-GLI-00001-000", "post")),
        ("BraTS-GLI-00001-000-t2w.nii.gz", None),
        ("BraTS-GLI-00001-000-seg.nii.gz", None),
        ("BraTS2021_00000_flair.nii.gz", ("BraTS2021_00000", "flair")),
        ("BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", "post")),
        ("BraTS2021_00000_t1.nii.gz", ("BraTS2021_00000", "pre")),
        ("sub-01_FLAIR.nii.gz", ("sub-01", "flair")),
        ("sub-01_ses-2_acq-ax_FLAIR.NII.GZ", ("sub-01_ses-2", "flair")),
        ("sub-01_acq-mprage_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_ce-gadolinium_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-postcontrast_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-gd_run-1_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_desc-post_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-3dT1post2_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_rec-postGadovist_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-spacecontrol_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_acq-postMPRAGE_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-axpost3d_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_acq-postopGd_T1w.nii.gz", ("sub-01", "post")),
        ("sub-01_desc-postproc_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_acq-posterior_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_acq-postop_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_acq-precontrast_T1w.nii.gz", ("sub-01", "pre")),
        ("sub-01_T2w.nii.gz", None),
        ("sub-01_desc-lesion_mask.nii.gz", None),
        ("patient 1 T2_FLAIR.nrrd", ("patient 1", "flair")),
        ("flair.mha", ("folder", "flair")),
        ("start1.nii.gz", None),
        ("P1_T1_FLAIR.nii.gz", None),
        ("P1_t1w-flair.nii.gz", None),
        ("P1_FLAIR_T1.nii.gz", None),
        ("T1.FLAIR.nii.gz", None),
        ("sub-01_acq-T1_FLAIR.nii.gz", None),
        ("sub-01_space-T1w_FLAIR.nii.gz", ("sub-01", "flair")),
        ("Start1_FLAIR.nii.gz", ("Start1", "flair")),
        ("a_image.nii.gz", None),
    ],
)
def test_a_name_tells_patient_and_sequence(name: str, expected: tuple[str, str] | None) -> None:
    assert role_of(Path("folder", name)) == expected


def test_files_become_patients() -> None:
    paths = [Path("a", name) for name in ("x-t2f.nii", "x-t1n.nii", "x-seg.nii", "y_flair.nii", "z_t1.nii")]
    patients, skipped, unclear = group(paths)
    assert patients == {
        "x": Sequences(Path("a/x-t2f.nii"), pre=Path("a/x-t1n.nii")),
        "y": Sequences(Path("a/y_flair.nii")),
    }
    assert skipped == {
        Path("a/x-seg.nii"): "its name says neither FLAIR nor T1",
        Path("a/z_t1.nii"): "no FLAIR of z beside it",
    }
    assert not unclear


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/P1.nii.gz", "labels/P1_flair.nii.gz"),
        ("imagesTr/P1_flair_0000.nii.gz", "labelsTr/P1_flair.nii.gz"),
        ("sub-01/anat/sub-01_T1w.nii.gz", "derivatives/masks/sub-01/anat/sub-01_FLAIR.nii.gz"),
    ],
)
def test_a_file_in_a_folder_of_masks_is_no_image(image: str, mask: str) -> None:
    """Folders above the source folder do not count."""
    root = Path("labels", "in")
    for paths in ([root / image, root / mask], [root / mask]):
        patients, skipped, unclear = group(paths, root)
        assert (patients, unclear) == ({}, {})
        assert skipped[root / mask] == "in a folder of masks"
    patients, skipped, _ = group([root / "P1_flair.nii.gz"])
    assert (patients.keys(), skipped) == ({"P1"}, {})


def test_a_patient_has_one_name_however_its_letters_are_composed() -> None:
    assert group([Path("Zoe\u0308_flair.nii")])[0].keys() == {"Zo\u00eb"}


def test_two_of_one_sequence_are_not_guessed() -> None:
    names = ("sub-1_run-1_FLAIR.nii.gz", "sub-1_run-2_FLAIR.nii.gz", "sub-2_FLAIR.nii.gz")
    patients, _, unclear = group([Path(name) for name in names])
    assert set(patients) == {"sub-2"}
    assert unclear == {"sub-1": "sub-1_run-1_FLAIR.nii.gz and sub-1_run-2_FLAIR.nii.gz"}


def test_files_of_different_folders_do_not_join_by_name_alone() -> None:
    paths = [Path("in", name) for name in ("a/x_flair.nii", "b/x_t1c.nii", "a/y_flair.nii", "b/z_t1.nii", "c/z_t1.nii")]
    patients, skipped, unclear = group(paths)
    assert patients == {"y": Sequences(paths[2])}
    assert unclear == {"x": "in/a/x_flair.nii and in/b/x_t1c.nii"}
    assert set(skipped) == set(paths[3:])


def test_bids_joins_raw_and_derived_of_one_session() -> None:
    raw, t1 = Path("in/sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii"), Path("in/derivatives/p/sub-1/sub-1_ses-1_T1w.nii")
    derived = Path("in/derivatives/p/sub-1/sub-1_ses-1_desc-preproc_FLAIR.nii")
    patients, skipped, unclear = group([raw, t1, derived])
    assert patients == {"sub-1_ses-1": Sequences(raw, pre=t1)}
    assert skipped == {derived: f"derived from a raw image, {raw} is used"}
    assert not unclear
    apart = [Path("derivatives", place, "sub-1/anat/sub-1_FLAIR.nii") for place in ("a", "b")]
    assert set(group(apart)[2]) == {"sub-1"}
