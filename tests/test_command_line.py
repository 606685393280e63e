"""What all commands share: errors of the machine become one line, errors of the program keep their traceback."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.__main__
from pipeline.command_line import CommandParser, is_first_process, print_json, program, run_cli, say
from pipeline.scripts.faults import machine_fault_line
from pipeline.scripts.files import locked
from pipeline.scripts.inferers import ShrinkingInferer
from tests.conftest import ROOT


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
        (OSError(36, "File name too long", "xxx"), "xxx: File name too long. Check the path and its permissions."),
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


@pytest.mark.parametrize(
    ("called", "named"),
    [
        ("/usr/bin/lgg-flair", "lgg-flair predict"),
        ("C:/Scripts/lgg-flair.exe", "lgg-flair predict"),
        ("C:/Scripts/lgg-flair-script.py", "lgg-flair predict"),
        ("/x/pipeline/__main__.py", "python -m pipeline predict"),
        ("/x/pipeline/predict.py", "python -m pipeline.predict"),
        ("/x/pytest/__main__.py", "python -m pipeline.predict"),
        ("", "python -m pipeline.predict"),
    ],
)
def test_help_says_what_was_called(monkeypatch: pytest.MonkeyPatch, called: str, named: str) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program("predict") == named
    assert CommandParser("predict").format_usage().startswith(f"usage: {named} ")


@pytest.mark.parametrize(
    ("given", "out", "err"),
    [
        ([], "note\n", "warning: odd\n"),
        (["--quiet"], "", "warning: odd\n"),
        (["--verbose"], "note\n", "debug: detail\nwarning: odd\n"),
        (["--json"], '{\n  "a": 1\n}\n', "note\nwarning: odd\n"),
        (["--json", "--quiet"], '{\n  "a": 1\n}\n', "warning: odd\n"),
    ],
)
def test_what_is_shown(given: list[str], out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Any) -> int:
        parser = CommandParser("predict")
        args = parser.parse_args(argv)
        assert vars(args) == {"json": "--json" in given}
        logger = logging.getLogger("pipeline.model.bundle")
        logger.debug("detail")
        say("note")
        logger.warning("odd")
        if args.json:
            print_json({"a": 1})
        return 0

    assert run_cli(main, given) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (out, err)


def test_quiet_and_verbose_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as refused:
        CommandParser("predict").parse_args(["--quiet", "--verbose"])
    assert refused.value.code == 2


RUN = r"""
import sys
from pathlib import Path
from pipeline.command_line import CommandParser, run_cli, say
def main(argv):
    CommandParser("predict").parse_args(argv)
    for _ in range(999):
        say("M\u00fcller \u8111 \udcff " + "x" * 99)
    Path(sys.orig_argv[-1]).write_text("the work is done")
    return 0
sys.exit(run_cli(main, []))
"""


def shell(redirection: str, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that prints much in a shell that redirects its output."""
    command = f"{shlex.join([sys.executable, '-c', RUN, str(target)])} {redirection}"
    return subprocess.run(
        command, shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs a shell")
@pytest.mark.parametrize(
    ("redirection", "status", "shown"),
    [
        ("<&- >&- 2>&-", 0, ""),
        (">&-", 0, ""),
        (">/dev/full 2>&1", 2, ""),
        (">/dev/full", 2, "error: standard output cannot be written ([Errno 28] No space left on device). The files"),
        ("| true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_no_output_ends_a_run(tmp_path: Path, redirection: str, status: int, shown: str) -> None:
    done = shell(redirection, tmp_path / "x")
    assert (done.returncode, done.stderr[: len(shown)]) == (status, shown)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "x").read_text() == "the work is done"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_the_terminal_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "x")],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("Müller 脑 \udcff xx".encode(encoding, "backslashreplace"))


def test_a_container_without_user_and_home(tmp_path: Path) -> None:
    """No HOME, no entry in the list of users, a working folder that cannot be written: imports work in silence."""
    code = (
        "import os, pwd, sys\n"
        "def unknown(*_): raise KeyError('uid not found')\n"
        "pwd.getpwuid = pwd.getpwnam = unknown\n"
        "from pipeline.command_line import run_cli\n"
        "def main(argv):\n"
        "    import matplotlib.pyplot, monai.bundle\n"
        "    from monai.transforms import LoadImage\n"
        "    matplotlib.get_configdir()\n"
        "    LoadImage()\n"
        "    return 0\n"
        "sys.exit(run_cli(main, []))"
    )
    (tmp_path / "read_only").mkdir(mode=0o555)
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "read_only",
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_overview_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.__main__.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"{status} " in text for status in (0, 2, 130, 143, 141))


@pytest.mark.parametrize(("processes", "status"), [("2", 3), ("1", 9)])
def test_a_process_of_torchrun_ends_with_its_status_whatever_happens_after_it(processes: str, status: int) -> None:
    """PyTorch aborts a process of a group now and then while it ends; here a function at the end does."""
    program = (
        "import atexit, os, sys; atexit.register(lambda: os._exit(9)); from pipeline.command_line import run_cli; "
        "sys.exit(run_cli(lambda _: print('done') or 3))"
    )
    environment = {**os.environ, "WORLD_SIZE": processes}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == status
    if processes == "2":
        assert done.stdout == b"done\n"


def test_the_number_of_a_process_counts_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some job scripts number tasks that have nothing to do with each other."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first_process()
