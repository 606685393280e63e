"""Faults that the user can mend: their exception, their one line, and the hook that ends a program with that line."""

from __future__ import annotations

import contextlib
import errno
import getpass
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Codes that a full or broken disk answers with."""


class PipelineError(Exception):
    """A fault that the user can mend; the message names subject, found, expected and remedy."""

    is_users_fault = True


REMARKS = {
    "monai.data.nvimgcodec_pydicom_plugin": "nvImageCodec is not available",
    "matplotlib": "Matplotlib created a temporary",
}
"""Logger -> start of its warnings that a user of these programs can do nothing about."""


def ready_process() -> None:
    """Have this process ready for any terminal, pipe or container.

    A letter that the output's encoding lacks becomes an escape; what is written to a closed output goes nowhere. An
    error while a message is logged, such as PyTorch's about a loader process that was killed, prints no traceback.
    """
    logging.raiseExceptions = False
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # no file of the run must get a closed one's number
            pass
        os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    ready_libraries()


def ready_libraries() -> None:
    """Have MONAI and Matplotlib work, and be silent about what is not there and not needed.

    Where the machine does not know the user, as in containers, the name is ``nobody``: MONAI asks for one when it is
    imported. Remarks about a decoder that is not installed and a home folder that is missing are left out.
    """
    for name in REMARKS:
        logging.getLogger(name).addFilter(_is_no_remark)
    warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI's surface DSC passes it by itself
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = "nobody"


def _is_no_remark(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(REMARKS.get(record.name, "\n"))


def is_users_fault(error: BaseException) -> bool:
    """True for a ``PipelineError``, the package's or that of a bundle's own copy of this file."""
    return bool(getattr(error, "is_users_fault", False))


def shown(text: object) -> str:
    """Text made safe for a terminal and for UTF-8: control, format and undecodable characters become escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def fault_lines(faults: Iterable[tuple[str, str]]) -> str:
    """A line for each fault, a pair of subject and message; a kind of fault of more than three subjects is one line.

    Messages that differ in numbers and names of volumes alone are of one kind: the first one is told.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for subject, message in faults:
        kinds.setdefault(re.sub(r"\S+\.nii(\.gz)?|\d+(\.\d+)?", "0", message), []).append((subject, message))
    lines = []
    for found in kinds.values():
        if len(found) <= 3:
            lines += [f"{subject}: {message}" for subject, message in found]
            continue
        names = ", ".join(subject for subject, _ in found[:3])
        such = "such as " if len({message for _, message in found}) > 1 else ""
        lines.append(f"{names} and {len(found) - 3} more ({len(found)} in all): {such}{found[0][1]}")
    return "\n".join(lines)


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
    ready_process()
    previous = sys.excepthook
    # StatsHandler logs the traceback of whatever passes by it.
    logging.getLogger("train").addFilter(lambda record: not record.exc_info)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = fault_line(error, then())
        if line is None:
            previous(kind, error, trace)
            return
        with contextlib.suppress(OSError):  # of a pipe or terminal that is gone
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
