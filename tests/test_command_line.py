"""What every command shares: faults of the machine become one line, faults of the program keep their traceback."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.command_line import run_cli
from pipeline.scripts.faults import machine_fault_line
from pipeline.scripts.files import locked
from pipeline.scripts.inferers import ShrinkingInferer


def test_a_full_gpu_ends_a_command_in_one_line(capsys: Any) -> None:
    def full(inputs: torch.Tensor) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    inferer = ShrinkingInferer(lambda inputs, network: network(inputs))
    assert run_cli(lambda _: inferer(torch.rand(1, 3, 16, 16), full)) == 2
    assert "error: memory ran out (CUDA out of memory" in capsys.readouterr().err


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
    assert machine_fault_line(OSError(2, "No such file"), "Free some.") is None


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
