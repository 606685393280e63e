"""A file's name gives patient, number and kind, or is refused. Every valid id is a valid file name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohort.names import (
    case_collisions,
    folder_name,
    institution,
    missing_numbers,
    number_list,
    parse_name,
    shortened,
    skip_reason,
)
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import person


def parse(name):
    return parse_name(PurePosixPath(name))


@pytest.mark.parametrize(
    ("name", "patient", "number", "kind"),
    [
        ("TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif", "TCGA_CS_4941_19960909", 1, "image"),
        ("a/TCGA_CS_4941_19960909_10_mask.tif", "TCGA_CS_4941_19960909", 10, "mask"),
        ("P_007.TIFF", "P", 7, "image"),
        ("P_1_mask.TiF", "P", 1, "mask"),
        ("Žofie Müller_3.tif", "Žofie Müller", 3, "image"),
        ("患者-1.b_2.tif", "患者-1.b", 2, "image"),
        ("P_1_mask_2.tif", "P_1_mask", 2, "image"),
    ],
)
def test_parse_name(name, patient, number, kind):
    file = parse(name)
    assert (file.patient, file.number, file.kind) == (patient, number, kind)


def test_decomposed_unicode_is_the_same_patient():
    assert parse("Mu\u0308ller_1.tif").patient == parse("M\u00fcller_1.tif").patient


@pytest.mark.parametrize("name", ["a.png", "data.csv", "x_1.tif.part", "README"])
def test_no_tiff_is_none(name):
    assert parse(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "scan.tif",
        "_1.tif",
        "P_x.tif",
        "P_1_MASK.tif",
        "P_٣.tif",
        "P_1234567.tif",
        "..\\x_1.tif",
        "<script>_1.tif",
        "=cmd_1.tif",
        "-x_1.tif",
        ".hidden_1.tif",
        "P _1.tif",
        "P._1.tif",
        "a\nb_1.tif",
        "a\u202eb_1.tif",
        "bad\udc80_1.tif",
        "volumes_1.tif",
        "p" * 101 + "_1.tif",
        "患" * 80 + "_1.tif",
    ],
)
def test_bad_names_are_refused_with_a_remedy(name):
    with pytest.raises(PipelineError, match="Rename"):
        parse(name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40).filter(lambda text: "/" not in text and "\0" not in text))
def test_every_name_is_parsed_none_or_refused(name):
    try:
        file = parse(f"{name}_12.tif")
    except PipelineError as error:
        assert str(error).isprintable()
    else:
        assert file.number == 12
        assert file.patient.isprintable()
        assert not set(file.patient) & set('/\\<>"=:*?|&')


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".DS_Store", "operating system"),
        ("P/._P_1.tif", "operating system"),
        ("Thumbs.db", "operating system"),
        ("P/desktop.ini", "operating system"),
        ("__MACOSX/P/P_1.tif", "__MACOSX"),
        (".git/x_1.tif", "hidden"),
        ("kaggle_3m/data.csv", "clinical table, not used"),
        ("notes.txt", "not a slice"),
    ],
)
def test_skip_reason(path, reason):
    assert reason in skip_reason(PurePosixPath(path))


def test_a_tiff_is_not_skipped():
    assert skip_reason(PurePosixPath("P/P_1.TIF")) is None


def test_missing_numbers():
    assert missing_numbers([5, 1, 2]) == [3, 4]
    assert missing_numbers([]) == []
    assert number_list(range(25)).endswith("19 and 5 more")


def test_person_and_institution():
    assert person("TCGA_HT_7616_19940813") == "TCGA_HT_7616"
    assert institution("TCGA_HT_7616_19940813") == "HT"
    assert person("patient 7") == "patient 7"
    assert institution("patient 7") == ""


def test_case_collisions():
    assert case_collisions(["a", "B", "A", "b", "c"]) == [["A", "a"], ["B", "b"]]


def test_shown_escapes_what_a_terminal_would_obey():
    assert shown("a\x1b[31m\n\udc80é") == "a\\x1b[31m\\n\\udc80é"


def test_a_folder_has_a_name_however_it_is_given(tmp_path, monkeypatch) -> None:
    (tmp_path / "Anna" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "Anna" / "sub")
    assert {folder_name(Path(given)) for given in ("..", "../../Anna", "../sub/..", "../../Anna/")} == {"Anna"}
    assert folder_name(Path()) == "sub"


def test_long_lists_are_shortened() -> None:
    assert shortened(["a", "b", "c\n"]) == f"a, b, {shown(chr(99) + chr(10))}"
    assert shortened([*"abcde"]) == "a, b, c and 2 more"
