"""Runs that are killed, or that collide, leave nothing half done: no process, no file, no lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from pipeline import predict, train
from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.pages import figures
from pipeline.scoring.evaluation import evaluate_volumes
from stress.kills import into, training_command, wait_for
from tests.conftest import BASIC, ROOT


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """As another process that writes there."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def test_a_second_run_into_one_folder_is_refused(manifest: Path, tmp_path: Path) -> None:
    with held(tmp_path / "out"):
        with pytest.raises(PipelineError, match="another run writes there"):
            evaluate_volumes(manifest, [BASIC], tmp_path / "out")
        with pytest.raises(PipelineError, match="another run writes there"):
            predict.main([str(manifest), "--bundle", str(BASIC), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_what_killed_runs_left_is_removed(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    for path in (tmp_path / "volumes" / ".writing-x1.tmp", tmp_path / ".writing-x2.tmp", tmp_path / ".other.tmp"):
        path.touch()
    assert predict.main([str(manifest), "--bundle", str(BASIC), "--out", str(tmp_path), "--no-figures"]) == 0
    assert [path.name for path in tmp_path.rglob(".*.tmp")] == [".other.tmp"]


def test_a_drawer_that_is_killed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise BrokenProcessPool

    (tmp_path / "image").touch()
    cases = [figures.Case(name, tmp_path / "image", tmp_path / "image") for name in ("a", "b")]
    monkeypatch.setattr(figures, "ProcessPoolExecutor", Broken)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(PipelineError, match="a process that draws was killed"):
        figures.draw_cases(cases, tmp_path / "out")


DRAWING = """
import os, sys
from pathlib import Path
from pipeline.pages.figures import Case, draw_cases
if __name__ == "__main__":
    os.cpu_count = lambda: 2
    image, mask, out = map(Path, sys.argv[1:])
    draw_cases([Case(f"case_{number}", image, mask) for number in range(1000)], out, all_slices=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found in /proc")
def test_no_drawer_outlives_its_parent(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "drawing.py").write_text(DRAWING)
    volume = read_manifest(manifest).sections["validation"][0]
    command = [sys.executable, tmp_path / "drawing.py", volume.image, volume.label, tmp_path / "out"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        wait_for(lambda: any(tmp_path.glob("out/*.gif")), process)
        drawers = children(process.pid)
        process.kill()
    assert len(drawers) >= 2
    for drawer in drawers:
        ended(drawer)
    assert len([*tmp_path.glob("out/*.gif")]) < 1000


TRAINING = """
import subprocess, sys
from pipeline import train
run = subprocess.run
lasting = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
subprocess.run = lambda command, **options: run(lasting, **options)
train.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a process of its parent's end on Linux alone")
def test_a_training_does_not_outlive_its_command(manifest: Path, tmp_path: Path) -> None:
    given = ["--bundle", str(BASIC), "--manifest", str(manifest), "--out", str(tmp_path)]
    command = [sys.executable, "-W", "ignore", "-c", TRAINING, *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        child = next(int(line) for line in process.stdout if line.strip().isdigit())
        process.kill()
        process.wait()
        ended(child)


def ended(process: int) -> None:
    """Wait until a process is no more, or a zombie whom nobody asks how it ended."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("still there")


def test_a_training_that_is_killed_is_reported(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9))
    assert train.main(["--bundle", str(BASIC), "--manifest", str(manifest), "--out", str(tmp_path)]) == 137
    assert "error: the training was killed (SIGKILL): perhaps memory ran out; run the same command with --resume" in (
        capsys.readouterr().err
    )


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found in /proc")
def test_a_killed_loader_worker_ends_the_training_in_a_line(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = into(training_command(BASIC, manifest, workers=2), out, "--steps_per_epoch", "5000")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: any(children(process.pid)), process)
        time.sleep(1)
        workers = children(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        start = time.monotonic()
        text = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "Traceback" not in text
    line = text.strip().splitlines()[-1]
    assert "A process that loads batches was killed" in line
    assert line.endswith("No epoch has ended, so there is no checkpoint to resume from: start again.")
    assert time.monotonic() - start < 60
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_training_without_memory_ends_in_a_line(manifest: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    command = into(training_command(BASIC, manifest), tmp_path / "run", "--image_size", "256", "--batch_size", "96")
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30)),
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: memory ran out (")
