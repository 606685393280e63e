"""What every command line shares: options, the library's messages, errors as a line, and the exit status."""

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
from pipeline.scripts.faults import is_users_fault, machine_fault_line, ready_process
from pipeline.scripts.memory import share_heap

PROGRAM = "lgg-flair"
_lost: OSError | None = None
"""Why standard output could not be written."""
MEMORY_REMEDY = "Free some, or give fewer volumes or bundles at once."
STATUSES = """\
exit status: 0 done; 2 a fault that you can mend, in one line on standard error; 130 interrupted (Ctrl-C);
143 asked to end (SIGTERM); 141 the reader of the output went away. Any other: a fault of the program."""


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command line's ``main`` and return its exit status; a ``PipelineError`` becomes a message and 2.

    The status is 2 as well where memory or disk ran out. It is 130 when interrupted from the keyboard and 143 when
    asked to end (SIGTERM), both with what was unfinished cleared away. It is 141 when the reader of the output went
    away (``... | head``). ``argv`` are the arguments without the program's name; for None those of the process.
    """
    global _lost  # noqa: PLW0603
    _lost = None
    ready_process()
    share_heap()
    # What is left at the end goes with the process: to look for unused objects among it takes a second.
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
    except BrokenPipeError:  # of a plain print
        _write("", sys.stdout, flush=True)
        return 141
    except Exception as error:
        line = str(error) if is_users_fault(error) else machine_fault_line(error, MEMORY_REMEDY)
        if line is None:
            raise
        _complain("\n".join([f"error: {line}", *getattr(error, "__notes__", ())]))
        return 2
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    return _status_of_output() or status


def _status_of_output() -> int:
    """0 where standard output could be written."""
    if _lost is None:
        return 0
    if isinstance(_lost, BrokenPipeError):
        return 141
    _complain(f"error: standard output cannot be written ({_lost}). The files of the command are complete.")
    return 2


class Console(logging.Handler):
    """Shows what commands and library say: notes on standard output, debug messages and warnings on standard error.

    Where standard output cannot be written any more, as in ``... | head`` or on a terminal that was closed, the notes
    are lost and the run goes on.
    """

    def __init__(self, *, for_scripts: bool = False) -> None:
        super().__init__()
        self.for_scripts = for_scripts

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message as a line."""
        on_output = record.levelno == logging.INFO and not self.for_scripts
        start = {logging.DEBUG: "debug: ", logging.INFO: ""}.get(record.levelno, "warning: ")
        _write(f"{start}{record.getMessage()}\n", sys.stdout if on_output else sys.stderr)


class CommandParser(argparse.ArgumentParser):
    """A command's parser: named as it was called, with the options that all commands share.

    To parse sets what is shown: ``--quiet`` and ``--verbose`` stand in no result. ``json`` says that the command is to
    call ``print_json`` at its end.
    """

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(prog=program(command), **options)
        shown = self.add_mutually_exclusive_group()
        shown.add_argument("--quiet", action="store_true", help="show warnings and errors alone")
        shown.add_argument("--verbose", action="store_true", help="show what is done in detail, on standard error")
        self.add_argument(
            "--json", action="store_true", help="print one JSON document, for scripts; all else goes to standard error"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and show messages as asked for."""
        found, rest = super().parse_known_args(args, namespace)
        quiet, verbose = found.quiet, found.verbose
        del found.quiet, found.verbose
        show_messages(
            logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO,
            for_scripts=found.json,
        )
        return found, rest


def program(command: str) -> str:
    """A command as this process was called: ``lgg-flair predict``, or by Python's ``-m``."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.stem.removesuffix("-script") == PROGRAM:
        return f"{PROGRAM} {command}"
    if called.name == "__main__.py" and called.parent.name == "pipeline":
        return f"python -m pipeline {command}"
    return f"python -m pipeline.{command}"


def show_messages(level: int = logging.INFO, *, for_scripts: bool = False) -> None:
    """Show the messages that are logged under the name ``pipeline``; for scripts, all of them on standard error."""
    logger = logging.getLogger("pipeline")
    # Of several processes that share a run the first one speaks.
    logger.setLevel(level if is_first_process() else max(level, logging.WARNING))
    logger.handlers = [Console(for_scripts=for_scripts)]


def is_first_process() -> bool:
    """Whether this process is the first of those that torchrun started, or alone."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Tell the user of a command something; ``--quiet`` leaves it out."""
    logging.getLogger("pipeline").info("%s", text)


def print_json(document: Any) -> None:
    """The one document that ``--json`` puts on standard output."""
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
        # What is still in the buffer goes nowhere: the interpreter flushes it once more at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str) -> None:
    _write("", sys.stdout, flush=True)
    _write(f"{text}\n", sys.stderr)


class _Terminated(BaseException):
    """Raised where the process is, by the signal that asks it to end."""


def _terminate(*_: object) -> None:
    raise _Terminated


def add_bundle_arguments(parser: argparse.ArgumentParser, *, default: str = "") -> None:
    """Add the options by which every command names its networks, ``--bundle`` first.

    ``default`` says what is taken where no bundle is named; without it one must be named.
    """
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        required=not default,
        help="bundle, by its name, such as basic_unet, or its folder; given several times: averaged"
        + (f" (default: {default})" if default else ""),
    )
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        default=[],
        help="state dict, one per --bundle (default: models/model.pt)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run a --bundle that is not this project's own: its configs can run any code",
    )
    parser.add_argument("--tta", action="store_true", help="average with the prediction of the mirrored volume")
    parser.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default=TORCH,
        help="what runs the networks; " + "; ".join(f"{name}: {meaning}" for name, meaning in BACKENDS.items()),
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: CUDA where there is some, else the CPU)")
