"""Evaluation by each ``--backend`` of ``pipeline.evaluate``, whole processes in turn: time, memory, DSC.

``python benchmarks/backends.py --manifest data_manifest --bundle bundles/basic_unet``
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
from pathlib import Path

from measure import Run, print_table, ratio, run, spread

from pipeline.backends import BACKENDS, TORCH

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"))
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "basic_unet")
    parser.add_argument("--weights", type=Path, help="default: the bundle's")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--repeats", type=int, default=3, help="of each backend (default: 3)")
    args = parser.parse_args()
    weights = args.weights or args.bundle / "models" / "model.pt"
    runs: dict[str, list[Run]] = {name: [] for name in BACKENDS}
    scores: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "pipeline.evaluate", "--manifest", str(args.manifest)]
        command += ["--bundle", str(args.bundle), "--weights", str(weights), "--split", args.split]
        for _ in range(args.repeats):
            for name in BACKENDS:
                out = Path(folder) / name
                runs[name].append(run([*command, "--backend", name, "--out", str(out)]))
                with (out / "scores.csv").open() as file:
                    scores[name] = {row["patient"]: float(row["dsc"] or "nan") for row in csv.DictReader(file)}
    rows = []
    for name, dsc in scores.items():
        times, first = ([finished.wall_s for finished in runs[key]] for key in (name, TORCH))
        known = [value for value in dsc.values() if not math.isnan(value)]
        apart = max(abs(value - scores[TORCH][patient]) for patient, value in dsc.items())
        rows.append(
            [name, spread(times), ratio(first, times), spread([finished.peak_mb for finished in runs[name]], "MB")]
        )
        rows[-1] += [f"{sum(known) / len(known):.4f}", f"{apart:.4f}"]
    title = f"{args.bundle.name}, {len(scores[TORCH])} volumes, from start to table, {args.repeats} runs in turn"
    head = ["backend", "time", "times sooner", "peak memory", "mean DSC", "largest difference of a volume's DSC"]
    print_table(title, head, rows)


if __name__ == "__main__":
    main()
