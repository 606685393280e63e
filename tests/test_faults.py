"""What stops a run, told in one line: NaN with its place, memory, workers, locks, the disk."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, on_cuda, running_module
from torture.kills import into, training_command, wait_for

from pipeline import evaluate, figures, predict, train
from pipeline.errors import PipelineError, run_cli
from pipeline.scripts import checkpoints, faults, files, inferers, machine, records
from pipeline.scripts import manifest as manifests
from pipeline.scripts.faults import fault_line
from pipeline.scripts.files import locked

BASIC = ROOT / "bundles" / "basic_unet"
NAN = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * float('nan')"}


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        ({"augmentation": [NAN]}, "the batch's image. Check the volumes"),
        ("weights", "network"),
        ({"loss": "$lambda pred, label: pred.sum() * float('inf')"}, "the loss itself"),
    ],
    ids=["input", "weights", "loss"],
)
def test_nan_in_training_is_named_with_its_place(  # noqa: PLR0917
    manifest: Path, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, place: str
) -> None:
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}
    running = running_module("handlers")
    monkeypatch.setattr(running.CheckLogits, "check", lambda self, engine: None)
    if spoil == "weights":
        start = running.WeightAverage._start

        def spoilt(self: Any) -> None:
            start(self)
            [*self.network.parameters()][-1].data.fill_(float("nan"))

        monkeypatch.setattr(running.WeightAverage, "_start", spoilt)
        spoil = {}
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **TINY, **spoil)
    told = fault_line(failure.value)
    assert told
    assert told.startswith("the training loss is not finite at iteration 1: NaN or Inf first in ")
    assert place in told
    assert not [*tmp_path.glob("model*"), *tmp_path.glob("checkpoint_*.pt")]


def test_weights_that_a_last_step_spoils_are_not_kept(
    manifest: Path, run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is finite, the weights after it are not: the epoch before stays."""
    folders = {"dataset_dir": str(manifest), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "log")}

    def spoil(self: Any, engine: Any) -> None:
        if engine.state.iteration == 8:
            for weights in engine.network.parameters():
                weights.grad.fill_(float("nan"))

    monkeypatch.setattr(running_module("handlers").ClipGradients, "_clip", spoil)
    with pytest.raises(RuntimeError) as failure:
        run_config(BASIC / "configs" / "train.json", **folders, **{**TINY, "val_interval": 5})
    assert "after iteration 8 the network holds NaN or Inf in network conv_0" in str(fault_line(failure.value))
    assert [path.name for path in tmp_path.glob("checkpoint_*.pt")] == ["checkpoint_1.pt"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_fault_is_one_line() -> None:
    def raised(*chain: BaseException) -> BaseException:
        for outer, inner in itertools.pairwise(chain):
            outer.__cause__ = inner
        return chain[0]

    wrapped = RuntimeError("Failed to evaluate")
    assert faults.fault_line(raised(wrapped, AssertionError("no manifest"))) == "no manifest"
    disk = raised(wrapped, PipelineError("x: cannot be written"), OSError(28, "No space left on device"))
    assert faults.fault_line(disk) == "x: cannot be written"
    assert "data: No space left on device. Free space" in faults.fault_line(
        OSError(28, "No space left on device", "data")
    )
    assert faults.fault_line(FileNotFoundError(2, "No such file", "v.nii.gz")).startswith(
        "v.nii.gz: No such file. Check the"
    )
    assert faults.fault_line(ConnectionRefusedError(111, "Connection refused")) is None
    assert faults.fault_line(AssertionError()) is None
    gone = raised(wrapped, RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), EOFError())
    assert faults.fault_line(gone).startswith("DataLoader worker (pid(s) 7) exited unexpectedly. A process that loads")
    assert "num_workers 0" in faults.fault_line(ConnectionResetError(104, "Connection reset by peer"))
    assert faults.fault_line(MemoryError()).startswith("memory ran out (MemoryError). Lower --batch_size")
    assert faults.fault_line(torch.OutOfMemoryError("CUDA out of memory.\nmore")).startswith(
        "memory ran out (CUDA out of mem"
    )
    assert faults.fault_line(KeyboardInterrupt(), "Start again.") == "interrupted. Start again."
    damaged = RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory")
    assert faults.fault_line(damaged).startswith(
        "weights that are damaged or cut short (PytorchStreamReader failed reading"
    )
    assert "num_workers 0" in faults.fault_line(
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. x")
    )
    assert faults.fault_line(raised(RuntimeError("Failed to evaluate"), KeyError("x"))) is None


def test_a_thread_that_is_refused_says_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """TensorBoard writes by a thread, and raises what that was refused at the next entry."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", lambda given: sys.stdout.write(f"thread: {given.exc_value}\n"))
    faults.explain_faults()
    full = OSError(28, "No space left on device", b"log/events")
    for error in (full, ValueError("strange")):
        thread = threading.Thread(target=raising, args=(error,))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == "thread: strange\n"
    assert faults.fault_line(full).startswith("log/events: No space left on device. Free space")


def raising(error: BaseException) -> None:
    raise error


def test_paths_of_the_machine_stay_out_of_a_record(tmp_path: Path) -> None:
    as_text = records.as_text
    record = {"a": str(tmp_path / "x"), "b": [f"$os.path.join('{tmp_path}/m', 'n')"], "c": "1 / 2", "d": "no/such/x"}
    assert json.loads(as_text(record)) == {"a": "x", "b": ["$os.path.join('m', 'n')"], "c": "1 / 2", "d": "no/such/x"}


def test_a_training_holds_the_manifest_against_its_hash(manifest: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(manifest, tmp_path / "manifest")
    file = copy / "manifest.json"
    content = json.loads(file.read_text())
    items = [{**item, **{kind: copy / item[kind] for kind in ("image", "label")}} for item in content["training"]]
    check = manifests.refuse_changed_volumes
    check(str(copy), items)
    with pytest.raises(PipelineError, match="knows nothing of the patient of"):
        check(str(copy), [{**items[0], "patient": "TCGA_XX_0000"}])
    text = file.read_text()
    file.write_text(text.replace(content["patients"][items[0]["patient"]]["image_sha256"], "0" * 64))
    with pytest.raises(
        PipelineError, match=r"changed since it was built, its SHA-256 \w+ is not that in manifest.json"
    ):
        check(str(copy), items)
    (copy / "manifest.json.sha256").unlink()
    with pytest.raises(PipelineError, match="changed since the manifest was built"):
        check(str(copy), items)
    check(str(tmp_path), items)  # no manifest: no hash is known


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *error: sys.stdout.write(f"traceback of {error[1]}\n"))
    faults.explain_faults()
    sys.excepthook(ValueError, ValueError("strange"), None)
    sys.excepthook(AssertionError, AssertionError("known"), None)
    assert capsys.readouterr() == ("traceback of strange\n", "\nerror: known\n")


class Hungry(torch.nn.Module):
    """A network whose device holds no more than ``most`` slices."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return batch[:, :1]


@pytest.mark.parametrize(("most", "shrunk"), [(4, 4), (1, 1), (0, None)])
def test_validation_takes_fewer_slices_where_a_gpu_is_full(caplog: Any, most: int, shrunk: int | None) -> None:
    from monai.inferers import SliceInferer

    volume = torch.rand(1, 3, 16, 16, 20)
    inferer = inferers.ShrinkingInferer(SliceInferer(roi_size=(16, 16), sw_batch_size=16, spatial_dim=2))
    if shrunk is None:
        with pytest.raises(torch.OutOfMemoryError):
            inferer(volume, Hungry(most))
        return
    assert torch.equal(inferer(volume, Hungry(most)), volume[:, :1])
    assert inferer.inferer.sw_batch_size == shrunk
    assert f"goes on with {shrunk} slices at once" in caplog.text


def test_a_full_gpu_ends_a_command_in_one_line(capsys: Any) -> None:
    inferer = inferers.ShrinkingInferer(lambda inputs, network: network(inputs))
    assert run_cli(lambda _: inferer(torch.rand(1, 3, 16, 16), Hungry(0))) == 2
    assert "error: memory ran out (CUDA out of memory" in capsys.readouterr().err


@contextlib.contextmanager
def memory_of_the_gpu(megabytes: int) -> Iterator[None]:
    """What this process may take of the GPU's memory, beyond what it holds."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@on_cuda
def test_slices_of_a_volume_fit_a_gpu_that_is_really_full(caplog: Any) -> None:
    from monai.inferers import SliceInferer
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    network = BasicUNet(2, 3, 1, features=(16, 16, 32, 64, 128, 16), norm="batch").cuda().eval()
    volume = torch.rand(1, 3, 256, 256, 64, device="cuda")
    inferer = SliceInferer(roi_size=(256, 256), sw_batch_size=64, spatial_dim=2)
    with torch.inference_mode():
        expected = inferer(volume, network).cpu()
        with memory_of_the_gpu(500):
            found = inferers.ShrinkingInferer(inferer)(volume, network).cpu()
    assert 1 <= inferer.sw_batch_size < 64
    assert "the GPU's memory ran out" in caplog.text
    assert torch.allclose(found, expected, atol=1e-2)


@on_cuda
def test_a_training_too_large_for_a_gpu_ends_in_one_line(manifest: Path, tmp_path: Path) -> None:
    """A batch that the GPU's memory does not hold: no traceback, no lock, no status of success."""
    small = (
        "import runpy, torch; torch.cuda.set_per_process_memory_fraction(0.01); "
        "runpy.run_module('monai.bundle', {}, '__main__', True)"
    )
    command = into(training_command(BASIC, manifest), tmp_path, "--image_size", "192", "--batch_size", "2048")
    at = command.index("monai.bundle")
    command[at - 1 : at + 1] = ["-c", small]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    told = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1, ended.stderr
    assert len(told) == 1, ended.stderr
    assert told[0].startswith("error: memory ran out (CUDA out of memory")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (OSError(28, "No space left on device", "x.csv"), "x.csv: No space left on device. Free space"),
    ],
)
def test_command_lines_say_what_the_machine_lacks(error: Exception, message: str, capsys: Any) -> None:
    def fail(_: Any) -> int:
        raise error

    assert run_cli(fail) == 2
    assert message in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_hidden() -> None:
    def fail(_: Any) -> int:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        run_cli(fail)
    assert faults.machine_fault_line(OSError(2, "No such file"), "Free some.") is None


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
            evaluate.main(["--manifest", str(manifest), "--bundle", str(BASIC), "--out", str(tmp_path / "out")])
        with pytest.raises(PipelineError, match="another run writes there"):
            predict.main([str(manifest), "--bundle", str(BASIC), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_what_killed_runs_left_is_removed(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    for path in (tmp_path / "volumes" / ".writing-x1.tmp", tmp_path / ".writing-x2.tmp", tmp_path / ".other.tmp"):
        path.touch()
    assert predict.main([str(manifest), "--bundle", str(BASIC), "--out", str(tmp_path), "--no-figures"]) == 0
    assert [path.name for path in tmp_path.rglob(".*.tmp")] == [".other.tmp"]


def test_a_drawer_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import concurrent.futures
    from concurrent.futures.process import BrokenProcessPool

    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise BrokenProcessPool

    (tmp_path / "image").touch()
    cases = [figures.Case(name, tmp_path / "image", tmp_path / "image") for name in ("a", "b")]
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Broken)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(PipelineError, match="a process that draws was killed"):
        figures.draw_cases(cases, tmp_path / "out")


POOL = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from pipeline.figures import _end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
    pool.submit(abs, 1).result()
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


def test_no_drawer_outlives_its_parent(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        drawer = int(process.stdout.readline())
        process.kill()
    ended(drawer)


def test_too_little_shared_memory_is_told_before_the_first_batch(tmp_path: Path, monkeypatch: Any) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    machine.check_shared_memory(0, 2**40, str(tmp_path))
    machine.check_shared_memory(2, 2**24, str(tmp_path))
    machine.check_shared_memory(2, 2**40, str(tmp_path / "none"))
    with pytest.raises(PipelineError, match=r"67.1 MB free, 2 processes that load batches need 67.1 MB\. Pass --train"):
        machine.check_shared_memory(2, 2**24 + 1, str(tmp_path))


FRONT = """
import sys
from pipeline import train
train._run([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a process of its parent's end on Linux alone")
def test_a_training_does_not_outlive_its_front_door() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", FRONT], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        line = process.stdout.readline()
        child = int(line) if line.strip().isdigit() else int(process.stdout.readline())
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


def test_damaged_volumes_do_not_train_and_are_not_scored(manifest: Path, run_config: Any, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(manifest, tmp_path / "m")
    label = sorted((copy / "volumes").glob("*_label.nii.gz"))[0]
    data = bytearray(label.read_bytes())
    data[-9] ^= 1  # gzip's own sum, which nibabel does not read
    label.write_bytes(data)
    for config in ("train", "evaluate"):
        folders = {"dataset_dir": str(copy), "ckpt_dir": str(BASIC / "models"), "output_dir": str(tmp_path / "o")}
        if config == "train":
            folders["ckpt_dir"] = str(tmp_path / "run")
        with pytest.raises(RuntimeError) as failure:
            for split in (
                ({},) if config == "train" else ({"split": name} for name in ("training", "validation", "test"))
            ):
                run_config(BASIC / "configs" / f"{config}.json", **folders, **(TINY if config == "train" else split))
        assert f"{label.name}: changed since the manifest was built" in str(fault_line(failure.value))
    assert not list(tmp_path.rglob("*.pt"))


def test_a_save_that_fails_twice_leaves_the_old_file_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, write = checkpoints.DurableSaver(tmp_path), files.write_durably

    def refuse(path: Path, data: bytes) -> None:
        if path.suffix == ".pt":
            raise PipelineError("full")
        write(path, data)

    saver({"a": 1}, "model_best.pt")
    (tmp_path / "other.pt").write_bytes(b"came with the bundle, without a hash beside it")
    monkeypatch.setattr(files, "write_durably", refuse)
    for name in ("model_best.pt", "other.pt"):
        whole = (tmp_path / name).read_bytes()
        for number in (2, 3):
            with pytest.raises(PipelineError, match="full"):
                saver({"a": number}, name)
        assert (tmp_path / name).read_bytes() == whole
        assert hashlib.sha256(whole).hexdigest() in (tmp_path / f"{name}.sha256").read_text().split()


def test_a_training_that_is_killed_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(train.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9))
    assert train._run(["python"]) == 137
    assert "error: the training was killed (SIGKILL): perhaps memory ran out; the same command with --resume" in (
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
    assert process.returncode == 1
    assert "Traceback" not in text
    line = text.strip().splitlines()[-1]
    assert "A process that loads batches was killed" in line
    assert line.endswith("No epoch has ended, there is no checkpoint to resume from: start again.")
    assert time.monotonic() - start < 60
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_training_without_memory_ends_in_a_line(manifest: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    command = into(training_command(BASIC, manifest), tmp_path / "run", "--image_size", "512", "--batch_size", "96")
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: memory ran out (")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_program_that_is_asked_to_end_clears_up(tmp_path: Path, capsys: Any) -> None:
    def main(_: Any) -> int:
        with locked(tmp_path, ("x",)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_cli(main) == 143
    assert capsys.readouterr().err == "terminated\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before
