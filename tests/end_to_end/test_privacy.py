"""No output names this machine, its user or its folders, and nothing of the clinical table goes into any."""

from __future__ import annotations

import getpass
import gzip
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline import evaluate, predict, report
from pipeline import manifest as manifest_cli
from tests.conftest import BASIC, TINY

CLINICAL = "secret_of_the_table"


def contents(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file below a folder; gzip opened."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(folder))] = data + (gzip.decompress(data) if path.suffix == ".gz" else b"")
    return found


def test_outputs_say_nothing_of_where_they_were_made(
    phantoms: Path, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source" / "kaggle_3m", tmp_path / "out"
    shutil.copytree(phantoms, source)
    (source / "data.csv").write_text(f"Patient,histological_type\nPHANTOM_AA_0001,{CLINICAL}\n")
    host = "a-host-name-of-its-own"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    split = ["--split", "random", "--validation-fraction", "0.25", "--test-fraction", "0.125"]
    assert manifest_cli.main([str(source), "--out", str(out / "manifest"), *split]) == 0
    bundle = BASIC
    folders = {"dataset_dir": str(out / "manifest"), "ckpt_dir": str(out / "run"), "output_dir": str(out / "run")}
    run_config(bundle / "configs" / "train.json", **folders, **TINY)
    given = ["--bundle", str(bundle), "--weights", str(out / "run" / "model.pt"), "--tta", "--uncertainty"]
    assert evaluate.main(["--manifest", str(out / "manifest"), *given, "--out", str(out / "scores"), "--figures"]) == 0
    assert report.main([str(out / "scores")]) == 0
    slices = [str(source / sorted(path.name for path in source.iterdir() if path.is_dir())[0])]
    assert predict.main([*slices, *given, "--out", str(out / "masks"), "--probability"]) == 0
    names = [str(tmp_path), host, CLINICAL, str(bundle.parent), os.uname().nodename + "."]
    names += [user for user in [getpass.getuser()] if user != "root"]
    found = contents(out)
    assert len(found) > 40
    revealed = {
        f"{name} in {path}" for path, data in found.items() for name in names if name.encode() in data or name in path
    }
    assert not revealed
