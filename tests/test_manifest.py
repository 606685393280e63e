"""The command that builds a manifest: its options, what it prints for a person, and its exit status."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import manifest
from pipeline.cohort import building
from pipeline.cohort.building import BuildResult, build_manifest
from pipeline.command_line import run_cli
from pipeline.scripts.manifest import SECTIONS
from tests.cohort.conftest import SIDE, A, B, C, add_patient, image, three_patients, write

SPLIT = ("--split", "random", "--validation-fraction", "0.3")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_patients(tmp_path / "kaggle_3m")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "with space"


@pytest.fixture
def run(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Status, standard output and standard error of one run."""

    def _run(*options: str, split: tuple[str, ...] = SPLIT) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_cli(manifest.main, [str(root), "--out", str(out), *split, *options])
        texts = capsys.readouterr()
        assert "Traceback" not in texts.err
        return status, texts.out, texts.err

    return _run


def test_a_sound_folder_is_reported_in_five_lines(run: Any, out: Path) -> None:
    status, printed, complaints = run("--folds", "2")
    assert (status, complaints) == (0, "")
    assert printed.splitlines() == [
        "patients: 3 (training 2, validation 1, test 0; split random, 2 folds), 9 slices",
        "files: 18 found = 18 used + 0 skipped + 0 refused",
        "warnings: none",
        f"manifest: {out}/manifest.json (research only, not for clinical use)",
        f"next: lgg-flair train --manifest '{out}' --bundle basic_unet",
    ]


def test_odd_but_usable_slices_are_counted(run: Any, root: Path) -> None:
    write(root / "copy" / f"{A}_1.tif", image(0))
    (root / "copy" / f"{A}_1.tif").write_bytes((root / A / f"{A}_1.tif").read_bytes())
    (root / "notes.txt").touch()
    for suffix in ("", "_mask"):
        (root / B / f"{B}_2{suffix}.tif").unlink()
    for number in (1, 2, 3):
        write(root / C / f"{C}_{number}.tif", image(number)[..., [1, 1, 1]])
    write(root / A / f"{A}_2.tif", np.zeros((SIDE, SIDE, 3), np.uint8))
    status, printed, complaints = run("--allow-gaps")
    assert (status, complaints) == (0, "")
    assert printed.splitlines()[1:5] == [
        "files: 18 found = 16 used + 2 skipped + 0 refused",
        "skipped: duplicate 1, not a slice 1",
        "missing sequences: post-contrast 1, pre-contrast 1",
        "warnings: black slices 1, gap 1, missing sequence 2",
    ]


def test_without_training_patients_an_evaluation_is_next(run: Any, out: Path) -> None:
    _, printed, _ = run(split=("--split", "none"))
    expected = f"next: lgg-flair evaluate --manifest '{out}' --bundle basic_unet --split test"
    assert printed.splitlines()[-1].startswith(expected)


def test_a_second_run_says_that_nothing_is_written(run: Any) -> None:
    _, first, _ = run()
    status, printed, _ = run()
    assert status == 0
    assert printed == "unchanged: nothing written\n" + first


@pytest.mark.parametrize("option", ["--validation-fraction", "--test-fraction"])
@pytest.mark.parametrize(
    ("split", "name"), [((), "reference"), (("--split", "none"), "none"), (("--split", "a.json"), "a.json")]
)
def test_a_share_needs_a_split_that_is_drawn(
    run: Any, out: Path, option: str, split: tuple[str, ...], name: str
) -> None:
    status, printed, complaints = run(option, "0.1", split=split)
    found = f"{option} with --split {name} (expected --split random or stratified)"
    assert (status, printed) == (2, "")
    assert complaints == f"error: {found}. Leave {option} out, or pass another --split.\n"
    assert not out.exists()


def test_faults_are_an_error_with_the_counts(run: Any, root: Path, out: Path) -> None:
    (root / A / f"{A}_2.tif").write_bytes(b"")
    (root / B / f"{B}_1_mask.tif").unlink()
    status, printed, complaints = run()
    assert status == 2
    assert printed == ""
    first, second, counts = complaints.splitlines()
    assert counts == "files: 17 found = 6 used + 0 skipped + 11 refused"
    assert first.startswith(f"error: {A}/{A}_2.tif: 0 bytes")
    assert second.startswith(f"{B}/{B}_1.tif: slice 1 has no mask")
    assert not out.exists()


def test_a_split_that_fails_is_an_error_with_the_counts(run: Any) -> None:
    status, printed, complaints = run(split=())
    assert (status, printed) == (2, "")
    assert complaints.endswith("\nfiles: 18 found = 18 used + 0 skipped + 0 refused\n")
    assert complaints.startswith("error: none of the 10 validation patients of the reference split")


def test_hostile_names_do_not_reach_the_terminal(run: Any, root: Path) -> None:
    (root / "a\x1b[31m_1.tif").write_bytes(b"")
    status, printed, complaints = run()
    assert status == 2
    assert "a\\x1b[31m_1.tif: " in complaints
    assert "\x1b" not in printed + complaints


def test_patients_left_out_are_warned_of(run: Any, root: Path) -> None:
    (root / A / f"{A}_2.tif").write_bytes(b"")
    status, printed, complaints = run("--skip-faulty", split=("--split", "none"))
    assert status == 0
    assert complaints.startswith(f"warning: left out: {A}/{A}_2.tif: 0 bytes")
    assert "warnings: left out 1\n" in printed
    assert "files: 18 found = 12 used + 0 skipped + 6 refused\n" in printed


def test_patients_left_out_are_reported_where_the_split_then_fails(run: Any, root: Path) -> None:
    for path in root.rglob("*_2.tif"):
        path.write_bytes(b"")
    status, printed, complaints = run("--skip-faulty")
    assert status == 2
    assert "the training section is empty: 0 patient(s)" in complaints
    for name in (A, B, C):
        assert f"warning: left out: {name}/{name}_2.tif: 0 bytes" in printed + complaints


def test_a_changed_split_is_warned_of(run: Any) -> None:
    run(split=("--split", "none"))
    status, _, complaints = run()
    assert status == 0
    assert complaints.startswith("warning: split changed: 3 patients are in another section")


def test_verify_agrees_or_names_what_does_not(run: Any, root: Path, out: Path) -> None:
    status, _, complaints = run("--verify")
    assert status == 2
    assert "no manifest" in complaints
    run()
    status, printed, _ = run("--verify")
    assert status == 0
    assert printed.splitlines() == [
        "verified: 18 source files and 6 volumes agree with the manifest",
        "files: 18 found = 18 used + 0 skipped + 0 refused",
    ]
    (out / "volumes" / f"{B}_label.nii.gz").write_bytes(b"rot")
    write(root / A / f"{A}_1.tif", image(99))
    status, _, complaints = run("--verify")
    assert status == 2
    assert f"{B}_label.nii.gz" in complaints
    assert f"{A}/{A}_1.tif: changed since the manifest was built" in complaints


def test_scripts_get_one_document(run: Any, root: Path, out: Path) -> None:
    (root / "notes.txt").touch()
    status, printed, shown = run("--json")
    assert status == 0
    content = json.loads((out / "manifest.json").read_text())
    patients = {section: [item["patient"] for item in content[section]] for section in SECTIONS}
    assert json.loads(printed) == {
        "manifest": f"{out}/manifest.json",
        "is_new": True,
        "patients": patients,
        "counts": {"found": 19, "used": 18, "skipped": 1, "refused": 0},
        "skipped": [{"path": "notes.txt", "reason": "not a slice"}],
        "warnings": [],
    }
    assert sum(map(len, patients.values())) == 3
    assert "files: 19 found" in shown
    assert not json.loads(run("--json", "--quiet")[1])["is_new"]
    status, printed, _ = run("--json", "--verify")
    assert status == 0
    assert json.loads(printed) == {"manifest": f"{out}/manifest.json", "ok": True, "faults": {}}
    (out / "volumes" / f"{B}_label.nii.gz").write_bytes(b"rot")
    (root / A / f"{A}_2.tif").write_bytes(b"")
    status, printed, _ = run("--json", "--verify")
    assert status == 2
    found = json.loads(printed)
    assert (found["manifest"], found["ok"]) == (f"{out}/manifest.json", False)
    assert found["faults"].keys() == {B, f"{A}/{A}_2.tif"}
    assert "changed since the manifest was built" in found["faults"][f"{A}/{A}_2.tif"][0]
    assert run("--json")[:2] == (2, "")


def test_a_folder_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(manifest.main, [str(tmp_path / "x"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'x'}: nothing there")


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], {}),
        (
            ["--out", "o", *SPLIT, "--test-fraction", "0.2", "--seed", "4", "--folds", "5", "--allow-gaps"],
            {
                "out": "o",
                "split": "random",
                "seed": 4,
                "validation_fraction": 0.3,
                "test_fraction": 0.2,
                "folds": 5,
                "allow_gaps": True,
            },
        ),
        (
            ["--skip-unpaired", "--skip-faulty", "--rebuild", "--pseudonymise", "key.csv"],
            {"skip_unpaired": True, "skip_faulty": True, "rebuild": True, "pseudonymise": Path("key.csv")},
        ),
    ],
)
def test_options(
    run: Any, out: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], given: dict[str, Any]
) -> None:
    run()
    content = json.loads((out / "manifest.json").read_text())
    asked = []

    def record(**arguments: Any) -> BuildResult:
        asked.append(arguments)
        return BuildResult(content, is_new=True)

    monkeypatch.setattr(building, "build_manifest", record)
    assert manifest.main(["src", *options]) == 0
    defaults = {name: one.default for name, one in inspect.signature(build_manifest).parameters.items()}
    assert asked == [{**defaults, "source": "src", **given}]


def test_pseudonyms_are_verified_by_their_key(run: Any, root: Path, tmp_path: Path) -> None:
    add_patient(root, "P")
    key = ("--pseudonymise", str(tmp_path / "apart" / "key.csv"))
    assert run(*key)[0] == 0
    status, printed, _ = run("--verify", *key)
    assert status == 0
    assert "24 source files and 8 volumes agree" in printed
    status, _, complaints = run("--verify")
    assert status == 2
    assert "pass --pseudonymise KEY" in complaints
