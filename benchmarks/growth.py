"""How time and memory grow with the number of patients, for manifest, training and evaluation of phantoms.

``python benchmarks/growth.py --patients 10 100 1000``: each measurement has its own process, and only the number of
patients changes. The weights are not trained, because the time does not depend on their values.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from against_reference import BUNDLE, save_our_weights
from measure import Run, print_table, run

STEPS = 10


def main() -> None:
    """Draw phantoms, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--patients", type=int, nargs="+", default=[10, 100, 1000], help="numbers of patients")
    parser.add_argument("--size", type=int, default=128, help="height and width of a slice in pixels (default: 128)")
    parser.add_argument("--slices", type=int, default=20, help="mean number of slices in a phantom (default: 20)")
    parser.add_argument(
        "--image-size", type=int, default=96, help="height and width that the network sees, in pixels (default: 96)"
    )
    parser.add_argument("--data", type=Path, help="folder that keeps the phantoms for another run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        weights = Path(out) / "weights.pt"
        # The weights are made in their own process, because a child's peak memory includes that of its parent.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(save_our_weights, weights).result()
        counts, found = sorted(args.patients), []
        for count in counts:
            found.append(dict(measure(args, count, Path(out), weights)))
            print(
                count,
                {what: (finished.wall_s, finished.peak_mb) for what, finished in found[-1].items()},
                file=sys.stderr,
            )
    rows = []
    for what in found[0]:
        runs = [measured[what] for measured in found]
        each = [
            f"{(last.wall_s - first.wall_s) / (more - few) * 1000:.0f}"
            for few, more, first, last in zip(counts, counts[1:], runs, runs[1:], strict=False)
        ]
        rows.append([what, *(f"{one.wall_s:.1f} s, {one.peak_mb:.0f} MB" for one in runs), ", ".join(each)])
    title = f"Phantoms of about {args.slices} slices, {args.size} x {args.size} px, seen at {args.image_size} px"
    print_table(title, ["", *(f"{count} patients" for count in counts), "ms for each patient more"], rows)


def measure(args: argparse.Namespace, count: int, out: Path, weights: Path) -> Iterator[tuple[str, Run]]:
    """The name of each step with ``count`` patients, and the process that did it."""
    data, manifest, cache = (args.data or out) / f"phantoms_{count}", out / f"manifest_{count}", out / f"cache_{count}"
    size = ["--patients", count, "--size", args.size, "--slices", args.slices]
    module("pipeline.phantom", data, *size)
    index = ["pipeline.manifest", data / "kaggle_3m", "--out", manifest, "--split", "random"]
    yield "manifest from TIFFs", module(*index)
    yield "manifest again, nothing changed", module(*index)
    for what, folder in (("", None), (", cache on disk made", cache), (", cache on disk there", cache)):
        yield f"training, {STEPS} steps{what}", train(args, manifest, out, folder)
    scored = ["--bundle", BUNDLE, "--weights", weights, "--split", "all", "--out", out / f"scores_{count}"]
    yield "evaluation of all", module("pipeline.evaluate", "--manifest", manifest, *scored)


def module(name: str, *arguments: Any) -> Run:
    """Run a module of this pipeline."""
    return run([sys.executable, "-W", "ignore", "-m", name, *map(str, arguments)])


def train(args: argparse.Namespace, manifest: Path, out: Path, cache: Path | None) -> Run:
    """A short training without validation."""
    options: dict[str, Any] = {"config_file": BUNDLE / "configs" / "train.json", "dataset_dir": manifest}
    options |= {"image_size": args.image_size, "max_epochs": 1, "steps_per_epoch": STEPS, "val_interval": 10**6}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        options |= {"ckpt_dir": folder, "output_dir": folder} | ({"cache_dir": cache} if cache else {})
        named = [f"--{key}={value}" for key, value in options.items()]
        return module("monai.bundle", "run", *named)


if __name__ == "__main__":
    main()
