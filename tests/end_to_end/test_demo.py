"""The demonstration of the README learns to find lesions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_reaches_080_on_unseen_phantoms(tmp_path: Path) -> None:
    command = ["make", "demo-run", f"PY={sys.executable}", f"DEMO={tmp_path}", "DEMO_EPOCHS=4"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"results: {tmp_path / 'results'}" in result.stdout
    said = [line for line in result.stdout.splitlines() if not line.startswith("make")]
    assert f"Open in a browser: {tmp_path / 'report.html'}" in said[-1]
    assert (tmp_path / "report.html").stat().st_size > 2e5
    assert len(list((tmp_path / "results" / "figures").glob("*.gif"))) == 6
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["volumes"] == 6
    assert summary["dsc_mean"] >= 0.8, result.stdout
