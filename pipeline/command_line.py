"""What all commands share: common options, the display of messages, errors without traceback, the exit status."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.model.backends import BACKENDS, TORCH
from pipeline.scripts.faults import is_users_fault, machine_fault_line, path_fault_line, ready_process
from pipeline.scripts.memory import share_heap

PROGRAM = "lgg-flair"
_lost: OSError | None = None
"""The first error in writing to standard output, if there was one."""
MEMORY_REMEDY = "Free memory, or give fewer volumes or bundles at once."
STATUSES = """\
exit status:
  0         the command is done
  1         the training failed (train only); the message says why
  2         an error that you can correct; the message says how
  130       interrupted (Ctrl-C)
  137       the system killed the training (train only)
  141       the program that read the output ended first
  143       asked to end (SIGTERM)
  other     the program has a fault"""


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run the ``main`` of a command, print its errors as messages, and return the exit status.

    Unfinished files are removed after Ctrl-C and SIGTERM.

    Args:
        main: The function of the command. It takes the arguments and returns an exit status.
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        What ``main`` returns, or one of these: 2 after a ``PipelineError``, or if memory or disk space ran out; 130
        after Ctrl-C; 143 after SIGTERM; 141 if the program that reads the output ended first (``... | head``).
    """
    global _lost  # noqa: PLW0603
    _lost = None
    ready_process()
    share_heap()
    # A last search for unused objects takes a second, and the memory is freed with the process anyway.
    atexit.register(gc.freeze)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main(argv)
        _write("", sys.stdout, flush=True)
    except _Terminated:
        _complain("terminated")
        return 143
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:  # raised by a plain print
        _write("", sys.stdout, flush=True)
        return 141
    except Exception as error:
        line = str(error) if is_users_fault(error) else machine_fault_line(error, MEMORY_REMEDY)
        line = line or path_fault_line(error)
        if line is None:
            raise
        _complain("\n".join([f"error: {line}", *getattr(error, "__notes__", ())]))
        return 2
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    status = _status_of_output() or status
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A process of torchrun ends at once. PyTorch's threads abort it now and then after Python has ended
        # ("terminate called without an active exception"), and torchrun would report a failure.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status_of_output() -> int:
    """The exit status that standard output asks for: 0 if all of it was written, else 141 or 2."""
    if _lost is None:
        return 0
    if isinstance(_lost, BrokenPipeError):
        return 141
    _complain(f"error: standard output cannot be written ({_lost}). The files of the command are complete.")
    return 2


class Console(logging.Handler):
    """Prints log messages: notes on standard output, debug messages and warnings on standard error.

    If standard output cannot be written any more, as in ``... | head`` or after the terminal was closed, the notes are
    lost and the run continues.

    Args:
        for_scripts: Print notes on standard error too, because standard output is for one JSON document.
    """

    def __init__(self, *, for_scripts: bool = False) -> None:
        super().__init__()
        self.for_scripts = for_scripts

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message on a line."""
        on_output = record.levelno == logging.INFO and not self.for_scripts
        start = {logging.DEBUG: "debug: ", logging.INFO: ""}.get(record.levelno, "warning: ")
        _write(f"{start}{record.getMessage()}\n", sys.stdout if on_output else sys.stderr)


class CommandParser(argparse.ArgumentParser):
    """The argument parser of a command, with the options that all commands share.

    Parsing applies ``--quiet`` and ``--verbose`` at once, so the result does not hold them. If ``json`` is true in the
    result, the command must call ``print_json`` at its end.

    Args:
        command: The name of the command, such as ``predict``.
        **options: More arguments of ``argparse.ArgumentParser``.
    """

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(prog=program(command), **options)
        shown = self.add_mutually_exclusive_group()
        shown.add_argument("--quiet", action="store_true", help="show only warnings and errors")
        shown.add_argument("--verbose", action="store_true", help="show each step in detail, on standard error")
        self.add_argument(
            "--json",
            action="store_true",
            help="print one JSON document on standard output, for scripts; all other text goes to standard error",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, and set which messages are shown."""
        found, rest = super().parse_known_args(args, namespace)
        quiet, verbose = found.quiet, found.verbose
        del found.quiet, found.verbose
        show_messages(
            logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO,
            for_scripts=found.json,
        )
        return found, rest


def program(command: str) -> str:
    """How this process was called, for usage lines: ``lgg-flair predict``, or ``python -m pipeline predict``."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.stem.removesuffix("-script") == PROGRAM:
        return f"{PROGRAM} {command}"
    if called.name == "__main__.py" and called.parent.name == "pipeline":
        return f"python -m pipeline {command}"
    return f"python -m pipeline.{command}"


def show_messages(level: int = logging.INFO, *, for_scripts: bool = False) -> None:
    """Print the messages of the logger ``pipeline``, as ``Console`` does.

    Args:
        level: The lowest level that is shown, such as ``logging.INFO``.
        for_scripts: Print all messages on standard error.
    """
    logger = logging.getLogger("pipeline")
    # If several processes share a run, only the first one prints notes.
    logger.setLevel(level if is_first_process() else max(level, logging.WARNING))
    logger.handlers = [Console(for_scripts=for_scripts)]


def is_first_process() -> bool:
    """Whether this process is the first one of torchrun, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Show a note to the user of a command, unless ``--quiet`` was given."""
    logging.getLogger("pipeline").info("%s", text)


def print_json(document: Any) -> None:
    """Print the document of ``--json`` on standard output; of several processes, only the first one prints."""
    if is_first_process():
        _write(json.dumps(document, indent=2) + "\n", sys.stdout)


def _write(text: str, stream: TextIO, *, flush: bool = False) -> None:
    global _lost  # noqa: PLW0603
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except OSError as error:
        _lost = _lost or (error if stream is sys.stdout else None)
        # The interpreter flushes the buffer once more at its end. From here on it writes to the null device.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str) -> None:
    _write("", sys.stdout, flush=True)
    _write(f"{text}\n", sys.stderr)


class _Terminated(BaseException):
    """SIGTERM has asked this process to end."""


def _terminate(*_: object) -> None:
    raise _Terminated


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose networks and how they run, from ``--bundle`` to ``--device``.

    Args:
        parser: The parser of the command.
    """
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        help="name of a bundle, such as basic_unet, or its folder; repeat it to average several bundles (default: the "
        "three bundles of this project)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        default=[],
        help="weights file (a PyTorch state dict), one for each --bundle (default: models/model.pt of the bundle)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run a --bundle that is not this project's own; its configs can run any code",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average with the prediction of the left-right mirrored volume (test-time augmentation; in Python: flips)",
    )
    parser.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default=TORCH,
        help="library that runs the networks; " + "; ".join(f"{name}: {meaning}" for name, meaning in BACKENDS.items()),
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: CUDA if there is a GPU, else the CPU)")
