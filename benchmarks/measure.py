"""What the benchmarks share: measure a process from outside, compare times, print a table."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """The measurements of one finished process.

    Args:
        wall_s: The seconds from its start to its end.
        peak_mb: The largest resident set of the process or of one of its children, in MB of 10^6 bytes.
        output: What it printed.
    """

    wall_s: float
    peak_mb: float
    output: str


def run(command: Sequence[str], **environment: str) -> Run:
    """Run a command to its end and measure it.

    Args:
        command: The program and its arguments.
        **environment: Environment variables, added to those of this process.

    Raises:
        RuntimeError: The command failed; the message holds the end of what it printed.
    """
    with tempfile.TemporaryFile() as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        output = file.read().decode(errors="replace")
    if status:
        raise RuntimeError(f"{' '.join(command[:6])} ... failed:\n{output[-2000:]}")
    return Run(wall, usage.ru_maxrss * 1024 / 1e6, output)


def spread(values: Sequence[float], unit: str = "s") -> str:
    """Median, lowest and highest value as text."""
    digits = 0 if statistics.median(values) >= 100 else 1 if statistics.median(values) >= 10 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    middle = f"{middle} {unit}".rstrip()
    return middle if len(values) == 1 else f"{middle} ({low} to {high}, n {len(values)})"


def ratio(first: Sequence[float], second: Sequence[float]) -> str:
    """The median of ``first`` divided by the median of ``second``, as text."""
    return f"{statistics.median(first) / statistics.median(second):.3g}"


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title, the machine with its versions, and a Markdown table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy"))
    print(
        f"\n{title}\n\n{len(os.sched_getaffinity(0))} cores ({model}), {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {versions}\n"
    )
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()
