"""Errors that the user can correct: their exception, their message, and the hook that ends a program with it."""

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
"""Error codes of a full or broken disk."""


class PipelineError(Exception):
    """An error that the user can correct. The message says what was found, what is expected and what to do."""

    is_users_fault = True


class WritingError(PipelineError):
    """A file or folder that cannot be written, mostly because the disk is full."""


REMARKS = {
    "monai.data.nvimgcodec_pydicom_plugin": "nvImageCodec is not available",
    "matplotlib": "Matplotlib created a temporary",
}
"""Logger -> start of those of its warnings that do not concern a user of these programs."""


def ready_process() -> None:
    """Prepare this process for any terminal, pipe or container.

    A letter that the output's encoding lacks becomes an escape. Text for a closed output is dropped. An error while a
    message is logged prints no traceback, such as PyTorch's error about a killed loader process.
    """
    logging.raiseExceptions = False
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # keeps files of the run off the standard numbers
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
    """Prepare MONAI and Matplotlib, and silence their warnings about optional parts that are missing.

    Containers may have no name for the user. The name is then ``nobody``, because MONAI asks for one at import.
    Warnings about a missing decoder or a missing home folder are left out.
    """
    for name in REMARKS:
        logging.getLogger(name).addFilter(_is_no_remark)
    warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI's own surface DSC causes it
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = "nobody"


def _is_no_remark(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(REMARKS.get(record.name, "\n"))


def is_users_fault(error: BaseException) -> bool:
    """True for a ``PipelineError`` of the package, or of a bundle's own copy of this file."""
    return bool(getattr(error, "is_users_fault", False))


def shown(text: object) -> str:
    """Text that is safe for a terminal and for UTF-8: control, format and undecodable characters become escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def fault_lines(faults: Iterable[tuple[str, str]]) -> str:
    """A message with a line for each error; an error of more than three subjects gets one line.

    Messages that differ only in numbers and names of volumes count as one error. Its line shows the first message.

    Args:
        faults: Pairs of subject, such as a path, and message.
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
    """One line for an error of the machine, such as a full memory or disk; None for any other error.

    Args:
        error: The error.
        remedy: What to do when memory ran out, a sentence.
        then: How to continue after the cause is removed, a sentence.
    """
    first = str(error).strip().partition("\n")[0]
    # PyTorch, which need not be loaded here, raises an OutOfMemoryError on a GPU and a RuntimeError on a CPU.
    on_cpu = isinstance(error, RuntimeError) and re.search("can't allocate memory|not enough memory", str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu:
        return f"memory ran out ({first or 'MemoryError'}). {remedy} {then}".rstrip()
    if isinstance(error, RecursionError):
        return "folders or a file's content are nested too deeply for this program. Move them out."
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}. Free space on the disk or repair it, then run again. {then}".rstrip()
    return None


def fault_line(error: BaseException, then: str = "") -> str | None:
    """One line for an error that the user of a bundle can correct, else None.

    Args:
        error: The error.
        then: How to continue afterwards, a sentence.
    """
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
        # After an error of the disk, the training can be resumed.
        line = f"{text} {then if isinstance(cause.__cause__, OSError) else ''}".strip() or None
    elif isinstance(cause, KeyboardInterrupt):
        line = f"interrupted. {then}".rstrip()
    elif _is_of_a_loader(cause):
        line = (
            f"{first or type(cause).__name__}. A process that loads batches was killed or hangs, mostly because memory "
            f"or /dev/shm is full. Free some, or pass --train#dataloader#num_workers 0. {then}"
        ).rstrip()
    elif isinstance(cause, RuntimeError) and text.startswith("PytorchStreamReader"):
        line = f"weights that are damaged or cut short ({first[:80]}). Restore the file that --ckpt_path names."
    elif isinstance(cause, ModuleNotFoundError) and text.startswith("Cannot locate class or function path"):
        name = text.rpartition(": ")[2].rstrip(".")
        line = f"_target_: {name}: no such class or function. Check its spelling and that Python can import its module."
    else:
        line = path_fault_line(cause, then)
    return line


def path_fault_line(error: BaseException, then: str = "") -> str | None:
    """One line for a path that cannot be opened, such as one in a closed folder or of a long name; else None.

    Args:
        error: The error.
        then: How to continue afterwards, a sentence.
    """
    if not isinstance(error, OSError) or not error.filename:
        return None
    return (
        f"{shown(os.fsdecode(error.filename))}: {error.strerror}. Check the path and its permissions. {then}".rstrip()
    )


def _is_of_a_loader(error: BaseException) -> bool:
    """True for the errors that PyTorch raises when a process that loads batches is killed or hangs."""
    said = isinstance(error, RuntimeError) and str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    return said or isinstance(error, (ConnectionResetError, BrokenPipeError, EOFError))


def explain_faults(then: Callable[[], str] = str) -> None:
    """End this program with one line and status 2 on an error that the user can correct, from now on.

    Args:
        then: Called at such an error; returns a sentence about how to continue, which ends the line.
    """
    ready_process()
    previous = sys.excepthook
    # StatsHandler logs the traceback of every error.
    logging.getLogger("train").addFilter(lambda record: not record.exc_info)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = fault_line(error, then())
        if line is None:
            previous(kind, error, trace)
            return
        with contextlib.suppress(OSError):  # the pipe or terminal may be gone
            sys.stdout.flush()
            sys.stderr.write(f"\nerror: {line}\n")
        # PyTorch raises when a process that loads batches ends, also among the functions called at Python's exit.
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise SystemExit(2)  # as all commands; 1 means an error of the program itself

    sys.excepthook = hook
    previous_of_threads = threading.excepthook

    def hook_of_threads(given: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread. The program gets the same error at its next entry.
        is_tensorboards = type(given.thread).__module__.startswith("tensorboard")
        if not is_tensorboards or given.exc_value is None or fault_line(given.exc_value) is None:
            previous_of_threads(given)

    threading.excepthook = hook_of_threads
