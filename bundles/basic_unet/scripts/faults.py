"""Faults that the user can mend: their exception, their one line, and the hook that ends a program with that line."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Codes that a full or broken disk answers with."""


class PipelineError(Exception):
    """A fault that the user can mend; the message names subject, found, expected and remedy."""

    is_users_fault = True


def is_users_fault(error: BaseException) -> bool:
    """True for a ``PipelineError``, the package's or that of a bundle's own copy of this file."""
    return bool(getattr(error, "is_users_fault", False))


def shown(text: object) -> str:
    """Text made safe for a terminal and for UTF-8: control, format and undecodable characters become escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def machine_fault_line(error: BaseException, remedy: str, then: str = "") -> str | None:
    """One line for an error that is the machine's (memory, disk), None for any other.

    ``remedy`` says what to do when memory ran out, ``then`` how to go on when the cause is mended.
    """
    first = str(error).strip().partition("\n")[0]
    # PyTorch, which need not be loaded here, raises an OutOfMemoryError on a GPU and a RuntimeError on a CPU.
    on_cpu = isinstance(error, RuntimeError) and re.search("can't allocate memory|not enough memory", str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu:
        return f"memory ran out ({first or 'MemoryError'}). {remedy} {then}".rstrip()
    if isinstance(error, RecursionError):
        return "folders or a file's content are nested deeper than this program follows. Move them out."
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}. Free space on the disk or mend it, then run again. {then}".rstrip()
    return None


def fault_line(error: BaseException, then: str = "") -> str | None:
    """One line for a fault that the user of a bundle can mend, else None; ``then`` says how to go on afterwards."""
    # MONAI and ignite wrap the error that was raised first.
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    # PyTorch's error about a loader process comes before the empty queue by which it noticed.
    cause = next((found for found in chain if is_users_fault(found) or _is_of_a_loader(found)), chain[-1])
    text = str(cause).strip()
    first = text.partition("\n")[0]
    if line := machine_fault_line(cause, "Lower --batch_size or --image_size.", then):
        return line
    if is_users_fault(cause) or isinstance(cause, AssertionError):
        # A disk that refused: the training can go on when it is mended.
        line = f"{text} {then if isinstance(cause.__cause__, OSError) else ''}".strip() or None
    elif isinstance(cause, KeyboardInterrupt):
        line = f"interrupted. {then}".rstrip()
    elif _is_of_a_loader(cause):
        line = (
            f"{first or type(cause).__name__}. A process that loads batches was killed or hangs, mostly for want of "
            f"memory or of /dev/shm. Free some, or pass --train#dataloader#num_workers 0. {then}"
        ).rstrip()
    elif isinstance(cause, RuntimeError) and text.startswith("PytorchStreamReader"):
        line = f"weights that are damaged or cut short ({first[:80]}). Restore the file that --ckpt_path names."
    elif isinstance(cause, OSError) and cause.filename:
        line = f"{os.fsdecode(cause.filename)}: {cause.strerror}. Check the path and its permissions. {then}".rstrip()
    return line


def _is_of_a_loader(error: BaseException) -> bool:
    """True for the errors raised where a process that loads batches is killed or hangs."""
    said = isinstance(error, RuntimeError) and str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    return said or isinstance(error, (ConnectionResetError, BrokenPipeError, EOFError))


def explain_faults(then: Callable[[], str] = str) -> None:
    """From now on, a fault that ends this program prints one line, which ``then()`` ends, instead of a traceback."""
    previous = sys.excepthook
    # StatsHandler logs the traceback of whatever passes by it.
    logging.getLogger("train").addFilter(lambda record: not record.exc_info)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = fault_line(error, then())
        if line is None:
            previous(kind, error, trace)
            return
        sys.stdout.flush()
        sys.stderr.write(f"\nerror: {line}\n")
        # PyTorch raises when a process that loads batches ends, also among the functions called at Python's exit.
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    sys.excepthook = hook
    previous_of_threads = threading.excepthook

    def hook_of_threads(given: threading.ExceptHookArgs) -> None:
        # TensorBoard writes by a thread; the program gets the same error at its next entry.
        if given.exc_value is None or fault_line(given.exc_value) is None:
            previous_of_threads(given)

    threading.excepthook = hook_of_threads
