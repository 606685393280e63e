"""A fault that the user can mend is reported in one line, without a traceback; every other error keeps its own."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.scripts import faults


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


def test_only_tensorboards_thread_says_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """TensorBoard writes by a thread, and raises what that was refused at the next entry."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", lambda given: sys.stdout.write(f"thread: {given.exc_value}\n"))
    faults.explain_faults()
    writer = type("Writer", (threading.Thread,), {"__module__": "tensorboard.summary"})
    full = OSError(28, "No space left on device", b"log/events")
    for kind, error in ((writer, full), (writer, ValueError("strange")), (threading.Thread, full)):
        thread = kind(target=raising, args=(error,))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == f"thread: strange\nthread: {full}\n"
    assert faults.fault_line(full).startswith("log/events: No space left on device. Free space")


def raising(error: BaseException) -> None:
    raise error


def test_an_error_while_a_message_is_logged_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(logging.StreamHandler):  # type: ignore[type-arg]
        def format(self, record: logging.LogRecord) -> str:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger, handler = logging.getLogger("a.log"), Interrupted()
    logger.addHandler(handler)
    faults.ready_process()
    logger.warning("a message")
    logger.removeHandler(handler)
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *error: sys.stdout.write(f"traceback of {error[1]}\n"))
    faults.explain_faults()
    sys.excepthook(ValueError, ValueError("strange"), None)
    with pytest.raises(SystemExit) as end:
        sys.excepthook(AssertionError, AssertionError("known"), None)
    assert end.value.code == 2
    assert capsys.readouterr() == ("traceback of strange\n", "\nerror: known\n")


def test_a_kind_of_fault_of_many_files_is_one_line() -> None:
    """The 53 unfit files of a user, and two more of other kinds."""
    many = [(f"data/{number}.nii", f"shape ({number}, 48) (expected (H, W, D)). Stack it.") for number in range(53)]
    other = [("a.nii", "no readable NIfTI file."), ("b.nii", "no readable NIfTI file.")]
    assert faults.fault_lines([*other, *many]).splitlines() == [
        "a.nii: no readable NIfTI file.",
        "b.nii: no readable NIfTI file.",
        "data/0.nii, data/1.nii, data/2.nii and 50 more (53 in all): such as shape (0, 48) (expected (H, W, D)). "
        "Stack it.",
    ]
    same = [(f"{number}.nii", "no readable NIfTI file.") for number in range(4)]
    assert faults.fault_lines(same) == "0.nii, 1.nii, 2.nii and 1 more (4 in all): no readable NIfTI file."
    assert faults.fault_lines([("x", "a"), ("x", "b")]) == "x: a\nx: b"
