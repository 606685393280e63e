"""Disturb every write point of every command: the disk refuses, the write is cut short, or the process is killed.

    python -m stress.sabotage --count 200 --seed 0        (--count 0: every point in every way)

A write point is a file opened for writing, a rename, a link, a new folder or an fsync below the command's folder. After
the fault, three things must hold. Each file under a final name is complete: it is the earlier one, or the one that an
undisturbed run writes. A command that fails says so in one line, without a traceback. The same command then succeeds
when it runs again. This prints one line for each command and way: tried, failed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.scripts.checkpoints import checkpoints_in, newest
from pipeline.scripts.files import checksum_path
from stress.kills import BUNDLE, into, training_command

WAYS = ("refused", "cut short", "killed", "killed in the write")
KILLS = WAYS[2:]
FULL = "disk full"
"""Another way, without a point: the folder is a small file system (tmpfs) that cannot hold what the command writes."""
VARYING = re.compile(r"events\.out\.tfevents\.|/run\.json$|/training\.json(\.sha256)?$")
"""Files that record times, or whether a training was resumed. They differ between runs."""


class Saboteur:
    """Counts the write points of this process below a folder, and spoils one of them.

    Args:
        folder: The folder; write points outside it do not count.
        number: The number of the point to spoil, from 0; None to count only.
        way: How to spoil it, one of ``WAYS``.
        most: The number of bytes that are written before a write is cut short.
    """

    def __init__(self, folder: Path, number: int | None, way: str, most: int) -> None:
        self.folder, self.number, self.way, self.most = str(folder.resolve()), number, way, most
        self.seen = 0
        self.fsync = os.fsync

    def start(self) -> None:
        """Start to count the points."""
        if self.way == "killed in the write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._audit)
        os.fsync = self._fsync

    def _below(self, path: Any) -> bool:
        # TensorBoard opens its file by bytes.
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.folder + os.sep)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if self._below(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._point("open", path)
        elif event in ("os.rename", "os.link"):
            if self._below(arguments[1]):
                self._point(event, arguments[1])
        elif event == "os.mkdir" and self._below(arguments[0]):
            self._point(event, arguments[0])

    def _fsync(self, handle: Any) -> None:
        self._point("fsync", f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")
        self.fsync(handle)

    def _point(self, what: str, path: Any) -> None:
        here, self.seen = self.seen == self.number, self.seen + 1
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if self.number is not None and self.seen == self.number + 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        if not here:
            return
        if what == "open" and self.way in ("cut short", "killed in the write"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, unlimited))
        elif self.way in KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            code = errno.EIO if what == "fsync" else errno.ENOSPC
            raise OSError(code, os.strerror(code), str(path))


@dataclass
class Ended:
    """How a command ended.

    Args:
        status: The exit status; a negative number is the signal that killed it.
        text: What it printed.
        points: The number of write points that it passed.
    """

    status: int
    text: str
    points: int


def run(command: Callable[[], int], folder: Path, number: int | None, way: str, most: int) -> Ended:
    """Run a command in a forked process and spoil one write point below ``folder``; arguments as for ``Saboteur``."""
    (printed, printing), (counted, counting) = os.pipe(), os.pipe()  # The limit on file sizes does not apply to pipes.
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.dup2(printing, 1)
            os.dup2(printing, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            saboteur = Saboteur(folder, number, way, most)
            saboteur.start()
            try:
                status = command()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:  # noqa: BLE001  # The exception hook of the program handles it.
                status = 1
                try:
                    sys.excepthook(*sys.exc_info())
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else 1
            saboteur.number = None
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(counting, str(saboteur.seen).encode())
        finally:
            os._exit(status)
    os.close(printing)
    os.close(counting)
    with os.fdopen(printed, "rb") as text, os.fdopen(counted, "rb") as number_of_points:
        said, points = text.read().decode(errors="replace"), int(number_of_points.read() or 0)
    _, wait = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(wait), said, points)


def tree(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that has its final name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not VARYING.search(f"/{path.name}")
    }


def hidden(folder: Path) -> set[str]:
    """The paths of hidden files, such as unfinished ones."""
    return {str(path.relative_to(folder)) for path in folder.rglob(".*")}


@dataclass
class Case:
    """A command, the files in its folder before it, and what must be true after a fault.

    Args:
        command: The command: it takes its folder and returns the exit status.
        before: A folder that is copied as the start; None to start with an empty folder.
        keeps: Whether a command that fails must leave all files as they were.
        whole: Another check of the folder after a fault, which raises an exception if it fails.
        again: The command that continues after a fault; None for the same command.
        locks: Whether the command locks its folder, and so can remove what killed runs have left. Caches are shared
            by processes and not locked.
        after: The tree that an undisturbed run leaves.
        hidden: The hidden files that an undisturbed run leaves.
    """

    command: Callable[[Path], int]
    before: Path | None = None
    keeps: bool = False
    whole: Callable[[Path], Any] = field(default=lambda folder: None)
    again: Callable[[Path], int] | None = None
    locks: bool = True
    after: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)


def faults_of(case: Case, folder: Path, number: int, way: str, most: int) -> list[str]:
    """Spoil one point, check the folder, run the command again undisturbed, and check again.

    Args:
        case: The command.
        folder: The folder where it writes. It is made anew.
        number: The number of the point; for ``FULL`` the free space of the disk in KiB.
        way: One of ``WAYS``, or ``FULL``.
        most: The number of bytes that are written before a write is cut short.

    Returns:
        The faults that were found, each as a line.
    """
    after = case.after
    fresh(case, folder, number if way == FULL else None)
    before = tree(folder)
    ended = run(lambda: case.command(folder), folder, None if way == FULL else number, way, most)
    if way == FULL:
        mount(folder, "remount,size=1g")
    found, now = [], tree(folder)
    explained = "Traceback" not in ended.text and re.search(
        r"error: .*(Free space|Choose another|run again|(Correct|Change) its permissions)", ended.text
    )
    if ended.status == 0:
        found += [] if now == after else ["ended well, with other files"]
    elif ended.status > 0:
        found += [] if explained else [f"not explained in a line: {ended.text[-1500:]}"]
        found += ["not as it was"] if case.keeps and now != before else []
    elif way not in KILLS:
        found.append(f"ended by signal {-ended.status}")
    torn = [name for name, digest in now.items() if digest not in (before.get(name), after.get(name))]
    found += [
        f"neither old nor new: {name}" for name in torn if not (case.again or name in MIXED or holds(folder, name))
    ]
    try:
        case.whole(folder)
    except Exception as error:  # noqa: BLE001
        found.append(f"not whole: {error!r}")
    again = run(lambda: (case.again or case.command)(folder), folder, None, "", 0)
    if again.status:
        found.append(f"the next run ended with {again.status}: {again.text[-1500:]}")
    elif tree(folder) != after:
        differing = {name for name in {*after, *tree(folder)} if tree(folder).get(name) != after.get(name)}
        found.append(f"the next run gave other files: {sorted(differing)[:5]}")
    return found + [f"left over: {name}" for name in hidden(folder) - case.hidden if case.locks and "cache" not in name]


def holds(folder: Path, proof: str) -> bool:
    """Whether ``proof`` is a file ``.sha256`` that holds the hash of the file beside it."""
    path = folder / proof.removesuffix(".sha256")
    return proof.endswith(".sha256") and hashlib.sha256(path.read_bytes()).hexdigest() in (folder / proof).read_text()


MIXED = ("checkpoint.json", "summary.json")
"""Files that change during a run."""


def fresh(case: Case, folder: Path, kibibytes: int | None = None) -> None:
    """Make the folder as the command finds it.

    Args:
        case: The command.
        folder: The folder, whose earlier content is removed.
        kibibytes: The free space in KiB, for a folder that is its own file system; None for a plain folder.
    """
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if kibibytes is not None:
        mount(folder, "size=1g")
    if case.before:
        shutil.copytree(case.before, folder, symlinks=True, dirs_exist_ok=True)
    if kibibytes is not None:
        mount(folder, f"remount,size={max(used_kib(folder) + kibibytes, 4)}k")  # A size of 0 means no limit.


def mount(folder: Path, options: str) -> None:
    """Mount a tmpfs on a folder, which needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process can mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount(Path(folder), "size=4k")
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def used_kib(folder: Path) -> int:
    """The used space of a folder's file system, in KiB."""
    usage = shutil.disk_usage(folder)
    return usage.used // 1024


IMPORTED = ("monai.bundle", "monai.engines", "monai.handlers", "monai.networks.nets", "torch.utils.tensorboard")
IMPORTED += ("matplotlib.pyplot", "medpy.metric", "pandas", "scipy.ndimage", "skimage.measure", "PIL.Image")
"""Modules that are imported once, not in each fork. They must not compute: PyTorch's threads do not survive a fork."""


def commands(folder: Path) -> dict[str, Case]:
    """The commands that write files, by name, each on a few small patients.

    Args:
        folder: A folder for their inputs.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    from pipeline import evaluate, manifest, pack, phantom, predict, report
    from pipeline.command_line import run_cli
    from pipeline.pages import figures

    figures.MAX_DRAWERS = 1  # Spawned processes have no saboteur, so this process draws.
    source = folder / "slices"
    phantom.main([str(source), "--patients", "4", "--size", "48", "--slices", "4"])
    split = ["--split", "random", "--validation-fraction", "0.5", "--folds", "2"]

    def build(out: Path, *more: str) -> int:
        return run_cli(manifest.main, [str(source / "kaggle_3m"), "--out", str(out), *split, *more])

    earlier, other = folder / "earlier", folder / "other"
    phantom.main([str(other), "--patients", "4", "--size", "48", "--slices", "5"])
    run_cli(manifest.main, [str(other / "kaggle_3m"), "--out", str(earlier), *split])
    built = folder / "built"
    build(built)
    given = ["--manifest", str(built), "--bundle", str(BUNDLE), "--tta", "--uncertainty", "--figures"]

    def score(out: Path) -> int:
        return run_cli(evaluate.main, [*given, "--out", str(out)])

    scored = folder / "scored"
    if run(lambda: score(scored), folder, None, "", 0).status:
        raise RuntimeError("evaluate fails undisturbed")
    slices = sorted(path for path in (source / "kaggle_3m").iterdir() if path.is_dir())[0]

    def masks(out: Path) -> int:
        options = ["--bundle", str(BUNDLE), "--tta", "--uncertainty", "--probability", "--overwrite", "--out", str(out)]
        return run_cli(predict.main, [str(slices), *options])

    def train(out: Path, *more: str) -> int:
        command = into(training_command(BUNDLE, built, epochs=2), out, "--cache_dir", str(out / "cache"), *more)
        sys.argv = command[command.index("monai.bundle") :]
        import runpy

        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        return 0

    def loadable(out: Path) -> None:
        for path in out.rglob("[!.]*.pt"):
            if hashlib.sha256(path.read_bytes()).hexdigest() not in checksum_path(path).read_text().split():
                raise ValueError(f"{path.name} is torn")
        for path in out.glob("[!.]*.json"):
            json.loads(path.read_text())
        if checkpoints_in(out):
            newest(out, "cpu")

    def resumed(out: Path) -> int:
        return train(out, *(["--resume", "True"] if any(out.glob("checkpoint_*.pt")) else []))

    return {
        "manifest": Case(build),
        "manifest, replaced": Case(lambda out: build(out, "--rebuild"), before=earlier, keeps=True),
        "evaluate": Case(score),
        "evaluate, again": Case(score, before=scored),
        "predict": Case(masks),
        "report": Case(lambda out: run_cli(report.main, [str(scored), "--out", str(out / "report.html")]), locks=False),
        "pack": Case(lambda out: run_cli(pack.main, [str(BUNDLE), "--out", str(out)]), locks=False),
        "train": Case(train, again=resumed, whole=loadable),
    }


def sabotage(count: int, seed: int, names: Sequence[str] = ()) -> dict[tuple[str, str], tuple[int, int]]:
    """Spoil write points of the commands, drawn at random or all of them.

    Args:
        count: The number of points, all commands together; 0 for every point in every way.
        seed: The random seed of the choice.
        names: The names of the commands; empty for all.

    Returns:
        (command, way) -> (tried, failed).
    """
    rng, found = random.Random(seed), defaultdict[tuple[str, str], tuple[int, int]](lambda: (0, 0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        cases = commands(root)
        cases = {key: case for key, case in cases.items() if not names or key in names}
        folder, points = root / "out", []
        for key, case in cases.items():
            fresh(case, folder)
            ended = run(lambda case=case: case.command(folder), folder, None, "", 0)
            if ended.status:
                raise RuntimeError(f"{key}: {ended.text}")
            case.after, case.hidden = tree(folder), hidden(folder)
            points += [(key, number, way) for number in range(ended.points) for way in WAYS]
            if may_mount():
                written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024
                points += [(key, rng.randrange(written + 1), FULL) for _ in range(ended.points)]
        for key, number, way in points if not count else rng.sample(points, min(count, len(points))):
            faults = faults_of(cases[key], folder, number, way, rng.choice((0, 1, 7, 30)))
            for fault in faults:
                print(f"{key}, point {number} {way}: {fault}", file=sys.stderr)
            tried, failed = found[key, way]
            found[key, way] = tried + 1, failed + bool(faults)
        fresh(next(iter(cases.values())), folder)  # This unmounts the folder.
    return dict(sorted(found.items()))


def main() -> int:
    """Run the harness, print one line for each command and way, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", default=[])
    args = parser.parse_args()
    found = sabotage(args.count, args.seed, args.command)
    for (command, way), (tried, failed) in found.items():
        print(f"| write point of {command}, {way}, seed {args.seed} | {tried} | {failed} |")
    return any(failed for _, failed in found.values())


if __name__ == "__main__":
    sys.exit(main())
