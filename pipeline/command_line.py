"""What every command line shares: the library's messages are shown, errors become a line and exit status 2."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.model.backends import BACKENDS, TORCH
from pipeline.scripts.faults import is_users_fault, machine_fault_line

MEMORY_REMEDY = "Free some, or give fewer volumes or bundles at once."


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command line's ``main`` and return its exit status; a ``PipelineError`` becomes a message and 2.

    The status is 2 as well where memory or disk ran out. It is 130 when interrupted from the keyboard and 143 when
    asked to end (SIGTERM), both with what was unfinished cleared away. It is 141 when the reader of the output went
    away (``... | head``). ``argv`` are the arguments without the program's name; for None those of the process.
    """
    # What is left at the end goes with the process: to look for unused objects among it takes a second.
    atexit.register(gc.freeze)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main(argv)
        sys.stdout.flush()
    except _Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = str(error) if is_users_fault(error) else machine_fault_line(error, MEMORY_REMEDY)
        if line is None:
            raise
        print("\n".join([f"error: {line}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    return status


class Console(logging.Handler):
    """Shows what the library says: notes on standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message as a line."""
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr)
        else:
            print(record.getMessage())


def show_messages() -> None:
    """Show the messages that the library logs under the name ``pipeline``."""
    logger = logging.getLogger("pipeline")
    logger.setLevel(logging.INFO)
    logger.handlers = [Console()]


class _Terminated(BaseException):
    """Raised where the process is, by the signal that asks it to end."""


def _terminate(*_: object) -> None:
    raise _Terminated


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options by which every command names its networks, ``--bundle`` first."""
    parser.add_argument(
        "--bundle", type=Path, action="append", required=True, help="bundle folder; given several times: averaged"
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
