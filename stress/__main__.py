"""Run all stress programs, and print one table.

    python -m stress --count 20 --seed 0        (`make torture COUNT=20`)

COUNT is the number of trainings that are killed and resumed, for each bundle and each way to load batches. The other
numbers follow from it: 15 times as many kills of processes that save or write, 100 times as many damaged files, 1000
times as many mutated inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.cohort.manifest import read_manifest, select
from stress import flips, fuzz, guided, kills, numbers, sabotage

ROOT = kills.ROOT
Row = tuple[str, int, int]


TESTS = {
    "bad inputs, tests": ["tests", "-k", "case_"],
    "foreign bundles, tests": ["tests/model/test_trust.py"],
    "faults reported, locks, processes, tests": [
        "tests/scripts/test_faults.py",
        "tests/end_to_end/test_damage.py",
        "tests/end_to_end/test_killed_runs.py",
    ],
    "privacy and pseudonyms, tests": ["tests/end_to_end/test_privacy.py", "tests/cohort/test_pseudonyms.py"],
}


def tests(chosen: Sequence[str]) -> tuple[int, int]:
    """Run tests, and return (number that passed or failed, number that failed).

    Args:
        chosen: Arguments of pytest that choose the tests.
    """
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *chosen]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", ended.stdout)}
    failed = found.get("failed", 0) + found.get("error", 0)
    return found.get("passed", 0) + failed, max(failed, int(ended.returncode != 0))


MAX_SHARE_OF_AN_EPOCH = 0.02


def overhead(manifest: Path, epochs: int = 2) -> tuple[int, int]:
    """Train epochs with a checkpoint each, and return (epochs, 1 if a checkpoint took too large a share of its epoch).

    Args:
        manifest: The folder of the manifest.
        epochs: The number of epochs.
    """
    command = [sys.executable, "-W", "ignore", "benchmarks/checkpoints.py", "--manifest", str(manifest)]
    command += ["--patients", "6", "--epochs", str(epochs)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    share = re.search(r"([\d.]+) at most", ended.stdout)
    if share is None:
        raise RuntimeError(ended.stderr)
    return epochs, int(float(share.group(1)) > MAX_SHARE_OF_AN_EPOCH)


def rows(count: int, seed: int) -> Iterator[Row]:
    """The rows of the table (what, tried, failed), short runs first."""
    for kind, found in numbers.numbers(100 * count, seed).items():
        yield kind, *found
    for kind, found in flips.flips(100 * count, seed).items():
        yield f"damage of {kind}", *found
    for kind, (tried, failed, _) in fuzz.fuzz(1000 * count, seed).items():
        yield f"mutated {kind}", tried, failed
    with tempfile.TemporaryDirectory() as folder:
        manifest = kills.phantom_manifest(Path(folder))
        for kind, found in numbers.nothing_scores_0(list(select(read_manifest(manifest), "all"))).items():
            yield kind, *found
        yield f"checkpoints of an epoch, over {MAX_SHARE_OF_AN_EPOCH:.0%} of its time", *overhead(manifest)
    for what, chosen in TESTS.items():
        yield what, *tests(chosen)
    if importlib.util.find_spec("atheris") is None:
        print("no atheris (pip install -e '.[fuzz]'): the rows led by coverage are left out", file=sys.stderr)
    else:
        for kind, found in guided.guided(1000 * count, seed).items():
            yield f"mutated {kind}, led by coverage", *found
    for (command, way), found in sabotage.sabotage(20 * count, seed).items():
        yield f"write points of {command}: {way}", *found
    yield "kills of a process that saves checkpoints", 15 * count, kills.saver(15 * count, seed)
    yield "kills of a process that writes files", 15 * count, kills.files(15 * count, seed)
    for bundle in sorted(path.parent for path in (ROOT / "bundles").glob("*/network.yaml")):
        for workers, processes in ((0, 1), (2, 1), (0, 2)):
            what = f"{bundle.name} killed and resumed, {workers} loader workers, {processes} process(es)"
            yield what, count, kills.training(count, seed, workers=workers, processes=processes, bundle=bundle)


def main() -> int:
    """Run all, print each row at once, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"| what (seed {args.seed}) | tried | failed |\n|---|---|---|", flush=True)
    failed = 0
    for what, tried, bad in rows(args.count, args.seed):
        print(f"| {what} | {tried} | {bad} |", flush=True)
        failed += bad
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
