"""The command that packs a bundle: what it prints, and its exit status."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from pipeline import pack
from pipeline.command_line import run_cli
from pipeline.scripts.files import sha256_file
from tests.conftest import BUNDLES


def test_the_zip_and_its_hash_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(pack.main, [str(BUNDLES[0]), "--out", str(tmp_path)]) == 0
    target = tmp_path / f"{BUNDLES[0].name}_v0.2.0.zip"
    assert zipfile.is_zipfile(target)
    size = target.stat().st_size / 1e6
    assert capsys.readouterr().out == f"{target}: {size:.1f} MB, SHA-256 {sha256_file(target)}\n"
    assert run_cli(pack.main, [str(BUNDLES[0]), "--out", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    facts = {"zip": str(target), "size_bytes": target.stat().st_size, "sha256": sha256_file(target)}
    assert json.loads(shown.out) == facts


def test_what_is_no_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(pack.main, [str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: found no LICENSE")
    assert not (tmp_path / "out").exists()
