"""Kill processes at random moments: one that saves checkpoints, one that writes files, and a whole training.

    python -m stress.kills saver --count 300 --seed 0        (or files, training)

This prints one line: what was killed, tried, failed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.scripts.checkpoints import checkpoints_in, newest
from pipeline.scripts.files import checksum_path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "basic_unet"

SAVING = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from scripts.checkpoints import DurableSaver
saver, number = DurableSaver(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while True:
    number += 1
    state = {"network": {"weight": torch.full((200_000,), float(number))}, "number": number}
    saver(state, f"checkpoint_{number}.pt")
    saver(state, "model_best.pt")
    if number > 2:
        saver.remove(f"checkpoint_{number - 2}.pt")
"""
"""Code that saves as ignite's ``Checkpoint`` does: the two newest checkpoints, and the best weights beside them."""

WRITING = """
import sys
from pathlib import Path
from pipeline.scripts.files import write_durably
folder, number = Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while True:
    number += 1
    for name in ("manifest.json", "scores.csv", "mask.nii.gz", "report.html"):
        write_durably(folder / name, (f"{number:08d}" * 50_000).encode())
"""


def killed(code: str, arguments: Sequence[str], wait_s: float) -> None:
    """Start a program, wait until it prints ``ready``, wait ``wait_s`` seconds more, and kill it.

    Args:
        code: The program in Python.
        arguments: The arguments of the program.
        wait_s: The time between ``ready`` and the kill, in seconds.

    Raises:
        RuntimeError: The program ended by itself.
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(process.stderr.read())
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(process.stderr.read())


def saver(count: int, seed: int) -> int:
    """Kill a process that saves checkpoints. Each time the newest one must load, and every file must be complete."""
    import torch

    rng, failed, last = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            killed(SAVING, [str(BUNDLE), folder, str(last)], rng.uniform(0, 0.25))
            files = sorted(Path(folder).glob("[!.]*.pt"))
            proofs = {path: checksum_path(path).read_text().split() for path in files}
            torn = [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() not in proofs[path]]
            if files:
                number = int(newest(folder, torch.device("cpu"))["number"])
                failed += bool(torn) or number < last
                last = number
            failed += bool(last and not files)
    return failed


def files(count: int, seed: int) -> int:
    """Kill a process that writes files as the commands do. Each file must be complete, and from one write only."""
    rng, failed, last = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            killed(WRITING, ["", folder, str(last)], rng.uniform(0, 0.1))
            for path in Path(folder).glob("[!.]*"):
                text = path.read_text()
                failed += len(text) != 400_000 or text != text[:8] * 50_000
                last = max(last, int(text[:8] or 0))
    return failed


def phantom_manifest(folder: Path) -> Path:
    """Build a manifest of eight small patients, two of them for validation, and return its folder."""
    run: dict[str, Any] = {"capture_output": True, "cwd": ROOT}
    phantoms = ["pipeline.phantom", str(folder / "ph"), "--patients", "8", "--size", "48", "--slices", "8"]
    subprocess.run([sys.executable, "-W", "ignore", "-m", *phantoms], check=True, **run)
    split = ["--split", "random", "--validation-fraction", "0.25"]
    manifest = ["pipeline.manifest", str(folder / "ph" / "kaggle_3m"), "--out", str(folder / "manifest"), *split]
    subprocess.run([sys.executable, "-W", "ignore", "-m", *manifest], check=True, **run)
    return folder / "manifest"


def training_command(
    bundle: Path, manifest: Path, *, workers: int = 0, processes: int = 1, epochs: int = 4
) -> list[str]:
    """The command of a training that takes seconds, without its output folder.

    Args:
        bundle: The folder of the bundle.
        manifest: The folder of a manifest of small patients.
        workers: The number of processes that load batches.
        processes: The number of processes that train together, by gloo.
        epochs: The number of epochs.
    """
    run, configs = [sys.executable, "-W", "ignore", "-m"], [bundle / "configs" / "train.json"]
    if processes > 1:
        run += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        configs += [bundle / "configs" / "multi_gpu_train.json"]
    little = {"image_size": 32, "max_epochs": epochs, "steps_per_epoch": 6, "batch_size": 4, "val_interval": 1}
    little["train#dataloader#num_workers"] = workers
    options = [part for key, value in little.items() for part in (f"--{key}", str(value))]
    names = str([str(config) for config in configs]).replace(" ", "") if processes > 1 else str(configs[0])
    return [*run, "monai.bundle", "run", "--config_file", names, *options, "--dataset_dir", str(manifest)]


def into(command: Sequence[str], out: Path, *more: str) -> list[str]:
    """The command of a training with its output folder and more options."""
    return [*command, "--ckpt_dir", str(out), "--output_dir", str(out), *more]


def training(count: int, seed: int, *, workers: int = 0, bundle: Path = BUNDLE, processes: int = 1) -> int:
    """Kill a training at a random moment, resume it, and compare it with a training that was not killed.

    Last and best weights must be equal, bit by bit.

    Args:
        count: The number of trainings.
        seed: The random seed of the moments.
        workers: The number of processes that load batches.
        bundle: The folder of the bundle.
        processes: The number of processes that train together, by gloo.

    Returns:
        The number of trainings that failed.
    """
    import torch

    rng, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = phantom_manifest(folder)
        command = training_command(bundle, manifest, workers=workers, processes=processes)
        quiet: dict[str, Any] = {"capture_output": True, "cwd": ROOT}
        whole = folder / "whole"
        with subprocess.Popen(
            into(command, whole), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        ) as run:
            wait_for(lambda: any(whole.glob("checkpoint_*.pt")), run)
            start = time.monotonic()
            if run.wait():
                raise RuntimeError("the training fails undisturbed")
            took = time.monotonic() - start
        number = 0
        while number < count:
            out = folder / f"killed_{number}_"
            with subprocess.Popen(
                into(command, out),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
            ) as process:
                wait_for(lambda out=out: any(out.glob("checkpoint_*.pt")), process)
                time.sleep(rng.uniform(0, took))
                kill_all(str(out))
                if process.wait() == 0:  # It ended before the kill, so it does not count.
                    shutil.rmtree(out)
                    continue
            number += 1
            if checkpoints_in(out):
                subprocess.run(into(command, out, "--resume", "True"), check=True, **quiet)
            elif not (out / "training.json").is_file():
                failed += 1  # It has no checkpoint to resume from, and it was not finished.
                continue
            same = all(
                torch.equal(one, torch.load(whole / file, weights_only=True)[key])
                for file in ("model.pt", "model_best.pt")
                for key, one in torch.load(out / file, weights_only=True).items()
            )
            best = [json.loads((run / "training.json").read_text())["best_validation_dsc"] for run in (whole, out)]
            failed += not same or best[0] != best[1]
            shutil.rmtree(out)
    return failed


def kill_all(word: str) -> None:
    """Kill every process with this word in its command line, as if the machine went down."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[Any], most_s: float = 300) -> None:
    """Wait until ``happened`` returns true or the process ends.

    Raises:
        TimeoutError: Neither happened within ``most_s`` seconds.
    """
    end = time.monotonic() + most_s
    while not happened() and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"nothing within {most_s} s")
        time.sleep(0.005)


HARNESSES: dict[str, Callable[..., int]] = {"saver": saver, "files": files, "training": training}


def main() -> int:
    """Run one harness, print its line, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("harness", choices=list(HARNESSES))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", default="basic_unet", help="name of the bundle for training (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that load batches in training (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that train together, by gloo (default: %(default)s)"
    )
    args = parser.parse_args()
    options: dict[str, Any] = {}
    what = args.harness
    if args.harness == "training":
        options = {"workers": args.workers, "processes": args.processes, "bundle": ROOT / "bundles" / args.bundle}
        what = f"training of {args.bundle}, {args.workers} workers, {args.processes} process(es)"
    failed = HARNESSES[args.harness](args.count, args.seed, **options)
    print(f"| kills, {what}, seed {args.seed} | {args.count} | {failed} |")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
