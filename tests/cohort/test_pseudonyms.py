"""Pseudonyms from a separate key replace ids one to one in all files, from the manifest to the report."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline import evaluate, predict, report
from pipeline.cohort.building import build_manifest
from pipeline.cohort.changes import verify_manifest
from pipeline.cohort.pseudonyms import aliases, key_for, pseudonymised, read_key
from pipeline.cohort.reading import slice_owners
from pipeline.errors import PipelineError
from tests.conftest import BASIC, TINY

BUNDLE = BASIC
OPTIONS: dict[str, Any] = {"split": "random", "validation_fraction": 0.25, "folds": 2, "skip_faulty": True}


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    """Phantoms with a copy, a file that bears a name, and a patient with an error."""
    folder = tmp_path / "source" / "kaggle_3m"
    shutil.copytree(phantoms, folder)
    first, second = sorted(path.name for path in folder.iterdir() if path.is_dir())[:2]
    shutil.copytree(folder / first, folder / "copy of Mr. Smith" / first)
    (folder / f"notes on {second}.txt").touch()
    (folder / second / f"{second}_3_mask.tif").write_bytes(b"<html>")
    for name in ("=Smith Jane_1.tif", "Smith,Jane_2.tif", "Smith.tif"):
        (folder / name).touch()
    return folder


def ids(source: Path) -> list[str]:
    return sorted(path.name for path in source.iterdir() if path.name.startswith("PHANTOM"))


def build(source: Path, out: Path, key: Path | None) -> dict[str, Any]:
    built = build_manifest(source, out, pseudonymise=key, **OPTIONS)
    assert built.content == json.loads((out / "manifest.json").read_text())
    return built.content


def contents(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file in a folder, with gzipped files decompressed."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(folder))] = data + (gzip.decompress(data) if path.suffix == ".gz" else b"")
    return found


def test_no_id_is_left_in_any_output(source: Path, run_config: Any, tmp_path: Path) -> None:
    out, key = tmp_path / "out", tmp_path / "apart" / "key.csv"
    build(source, out / "manifest", key)
    folders = {"dataset_dir": str(out / "manifest"), "ckpt_dir": str(out / "run"), "output_dir": str(out / "run")}
    run_config(BUNDLE / "configs" / "train.json", **folders, **TINY)
    given = ["--bundle", str(BUNDLE), "--weights", str(out / "run" / "model.pt"), "--tta", "--uncertainty"]
    assert evaluate.main(["--manifest", str(out / "manifest"), *given, "--out", str(out / "scores"), "--figures"]) == 0
    assert report.main([str(out / "scores")]) == 0
    slices = [str(source / ids(source)[0])]
    assert predict.main([*slices, *given, "--out", str(out / "masks"), "--pseudonymise", str(key)]) == 0
    pseudonym = read_key(key)[ids(source)[0]]
    assert (out / "masks" / f"{pseudonym}_mask.nii.gz").is_file()
    found = contents(out)
    assert len(found) > 40
    names = [*ids(source), "PHANTOM", "Smith", str(tmp_path)]
    revealed = {
        f"{name} in {path}" for path, data in found.items() for name in names if name.encode() in data or name in path
    }
    assert not revealed
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(read_key(key)) == ids(source)


def test_content_and_split_are_those_of_the_ids(source: Path, tmp_path: Path) -> None:
    before = build(source, tmp_path / "plain", None)
    after = build(source, tmp_path / "out", tmp_path / "key.csv")
    key = read_key(tmp_path / "key.csv")
    assert after["counts"] == before["counts"]
    assert len(after["skipped"]) == len(before["skipped"])
    for section in ("training", "validation", "test"):
        assert [item["patient"] for item in after[section]] == sorted(key[item["patient"]] for item in before[section])
    for patient, info in before["patients"].items():
        hidden = after["patients"][key[patient]]
        assert sorted(hidden["sources"].values()) == sorted(info["sources"].values())
        same = ("image_sha256", "label_sha256", "fold", "lesion_voxels", "shape")
        assert [hidden[name] for name in same] == [info[name] for name in same]
        assert hidden["institution"] == ""


def test_runs_after_the_first_know_the_key(source: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "out", tmp_path / "key.csv"
    first = build(source, out, key)
    assert not build_manifest(source, out, pseudonymise=key, **OPTIONS).is_new
    assert build(source, out, key) == first
    (out / ".state.json").unlink()
    assert build(source, out, key) == first  # by content
    assert "agree with the manifest" in verify_manifest(source, out, key)
    third = ids(source)[2]
    new = "PHANTOM_ZZ_0099"
    shutil.copytree(source / third, source / new)
    for path in (source / new).iterdir():
        path.rename(path.with_name(path.name.replace(third, new)))
    more = build(source, out, key)
    assert set(more["patients"]) == {*first["patients"], read_key(key)[new]}
    slices = sorted(path for path in (source / third).glob("*.tif") if "mask" not in path.name)
    slices[0].write_bytes(slices[1].read_bytes())
    with pytest.raises(PipelineError, match=rf"{third}_\d+.tif: changed since"):
        verify_manifest(source, out, key)


def test_a_key_that_is_missing_or_misplaced_is_refused(source: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "out", tmp_path / "key.csv"
    build(source, out, key)
    with pytest.raises(PipelineError, match="pass --pseudonymise KEY"):
        build(source, out, None)
    with pytest.raises(PipelineError, match="pass --pseudonymise KEY"):
        verify_manifest(source, out)
    for place in (out / "key.csv", source / "key.csv"):
        with pytest.raises(PipelineError, match="Keep the key in a separate folder"):
            build(source, out, place)
    key.rename(tmp_path / "lost.csv")
    (out / ".state.json").unlink()
    with pytest.raises(PipelineError, match="no key, but"):
        build(source, out, key)
    assert not key.exists()


def test_a_pseudonym_may_be_another_patients_id(source: Path, tmp_path: Path) -> None:
    first = ids(source)[0]
    third = ids(source)[2]
    shutil.copytree(source / third, source / "P0001")
    for path in (source / "P0001").iterdir():
        path.rename(path.with_name(path.name.replace(third, "P0001")))
    (tmp_path / "key.csv").write_text(f"patient,pseudonym\n{first},P0001\n")
    found = build(source, tmp_path / "out", tmp_path / "key.csv")
    key = read_key(tmp_path / "key.csv")
    assert key[first] == "P0001" != key["P0001"]
    volumes = {patient: info["image_sha256"] for patient, info in found["patients"].items()}
    assert volumes[key["P0001"]] == volumes[key[third]] != volumes[key[first]]


def test_predictions_under_names_are_not_mixed_with_pseudonyms(source: Path, tmp_path: Path) -> None:
    given = [str(source / ids(source)[0]), "--bundle", str(BUNDLE), "--out", str(tmp_path / "out"), "--no-figures"]
    assert predict.main(given) == 0
    with pytest.raises(PipelineError, match="holds results under the patients' own names"):
        predict.main([*given, "--overwrite", "--pseudonymise", str(tmp_path / "key" / "key.csv")])
    with pytest.raises(PipelineError, match="Keep the key in a separate folder"):
        predict.main([*given, "--overwrite", "--pseudonymise", str(source / ids(source)[0] / "key.csv")])


def test_scores_of_pseudonyms_do_not_pass_as_unseen(source: Path, tmp_path: Path, capsys: Any) -> None:
    build(source, tmp_path / "out", tmp_path / "key.csv")
    given = ["--manifest", str(tmp_path / "out"), "--bundle", str(BUNDLE), "--out", str(tmp_path / "scores")]
    assert evaluate.main(given) == 0
    assert "so it is not known whether the weights were trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "id,name\na,b\n",
        "patient,pseudonym\na,P1\na,P2\n",
        "patient,pseudonym\na,P1\nb,P1\n",
        "patient,pseudonym\na,../x\n",
        "patient,pseudonym\na\n",
        "patient,pseudonym,consent\na,P1,yes\n",
        "\xff\n",
    ],
)
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    """An empty key is refused too. A full disk may have emptied it, and new pseudonyms would contradict the old."""
    key = tmp_path / "key.csv"
    key.write_bytes(text.encode("latin-1"))
    for use in (read_key, lambda path: key_for(path, ["a"])):
        with pytest.raises(PipelineError) as error:
            use(key)
        assert re.fullmatch(
            rf"{re.escape(str(key))}: (no readable|not a) key \(.*patient, pseudonym.*\. Restore it\.", str(error.value)
        )
    assert key.read_bytes() == text.encode("latin-1")


def test_a_key_grows_and_keeps_what_it_has(tmp_path: Path) -> None:
    first = key_for(tmp_path / "key.csv", ["b", "a", "P0001"])
    assert set(first) == {"a", "b", "P0001"}
    assert all(re.fullmatch(r"P\d{4}", name) for name in first.values())
    assert not set(first) & set(first.values())
    assert read_key(tmp_path / "key.csv") == first
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "key.csv").read_bytes())
    assert read_key(tmp_path / "excel.csv") == first
    more = key_for(tmp_path / "key.csv", ["c", "a"])
    assert {name: more[name] for name in first} == first
    assert len(set(more.values())) == 4


def test_a_link_to_a_key_stays_a_link(tmp_path: Path) -> None:
    """Another project may use the same key."""
    (tmp_path / "secure").mkdir()
    (tmp_path / "key.csv").symlink_to(Path("secure", "key.csv"))
    key = key_for(tmp_path / "key.csv", ["a"])
    assert (tmp_path / "key.csv").is_symlink()
    assert read_key(tmp_path / "secure" / "key.csv") == key


def test_short_ids_leave_words_alone() -> None:
    key, files = {"1": "P0001", "a": "P0002"}, ["1_4.tif", "a/a_2.tif", "a_2.tif", "a b.txt"]
    paths = aliases(files, slice_owners(files), key)
    assert paths == {
        "1_4.tif": "P0001/P0001_4.tif",
        "a_2.tif": "P0002/P0002_2.tif",
        "a/a_2.tif": "copy_2/P0002/P0002_2.tif",
        "a b.txt": "other/0001",
    }
    warning = {"patient": "a", "kind": "gap", "message": "a: a map of 12, expected a_5_mask.tif, same as a/a_2.tif"}
    content = {
        "training": [],
        "validation": [],
        "test": [],
        "patients": {},
        "skipped": [],
        "refused": [],
        "warnings": [warning],
    }
    warning = pseudonymised(content, key, paths)["warnings"][0]
    assert warning["patient"] == "P0002"
    assert warning["message"].startswith("P0002: ")
    assert warning["message"].endswith("map of 12, expected P0002_5_mask.tif, same as copy_2/P0002/P0002_2.tif")
