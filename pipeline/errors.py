"""Errors a user can cause, and the one place where command lines turn them into a message and exit status 2."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.scripts.faults import PipelineError, is_users_fault, machine_fault_line

__all__ = ["ManifestError", "PipelineError", "run_cli"]


class ManifestError(PipelineError):
    """Every fault of a folder of slices, collected before it is raised.

    Args:
        faults: path relative to the source folder (or a patient id) -> its messages, in order of discovery.
    """

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = {subject: list(messages) for subject, messages in faults.items()}
        lines = [f"{subject}: {message}" for subject, messages in self.faults.items() for message in messages]
        super().__init__("\n".join(lines))


MEMORY_REMEDY = "Free some, or give fewer volumes or bundles at once."


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command line's ``main`` and return its exit status; a ``PipelineError`` becomes a message and 2.

    Args:
        main: takes the arguments (None: those of the process) and returns the exit status.
        argv: the arguments, without the program's name.

    Returns:
        The status of ``main``; 2 for a ``PipelineError`` and where memory or disk ran out; 130 when interrupted from
        the keyboard, 143 when asked to end (SIGTERM), both with what was unfinished cleared away; 141 when the reader
        of the output went away (``... | head``).
    """
    # What is left at the end goes with the process: to look for unused objects among it takes a second.
    atexit.register(gc.freeze)
    ended = _ends_by(signal.SIGTERM)
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
        print(f"error: {line}", file=sys.stderr)
        return 2
    finally:
        if ended is not None:
            signal.signal(signal.SIGTERM, ended)
    return status


class _Terminated(BaseException):
    """Raised where the process is, by the signal that asks it to end."""


def _ends_by(number: signal.Signals) -> Any:
    """Let a signal raise ``_Terminated``; what it did before, None where this thread cannot say."""

    def end(*_: object) -> None:
        raise _Terminated

    return signal.signal(number, end) if threading.current_thread() is threading.main_thread() else None
