"""Compare all ``--backend`` of ``lgg-flair evaluate``: time, memory and DSC of whole processes, in turn.

One more row measures PyTorch without ``keep_freed_memory`` of the scripts.

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

from pipeline.model.backends import BACKENDS, TORCH

PLAIN = "PyTorch as it comes"
EVALUATE = ("-m", "pipeline.evaluate")
AS_IT_COMES = """
import sys
from pipeline import evaluate
from pipeline.command_line import run_cli
from pipeline.scripts import memory
memory.keep_freed_memory = lambda: False
sys.exit(run_cli(evaluate.main))
"""
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--manifest", type=Path, default=Path("data_manifest"), help="folder of the manifest (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "basic_unet")
    parser.add_argument("--weights", type=Path, help="weights file (default: the weights of the bundle)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each backend (default: 3)")
    args = parser.parse_args()
    weights = args.weights or args.bundle / "models" / "model.pt"
    with tempfile.TemporaryDirectory() as folder:
        kinds = {PLAIN: TORCH, **{name: name for name in BACKENDS}}
        runs: dict[str, list[Run]] = {name: [] for name in kinds}
        scores: dict[str, dict[str, float]] = {}
        command = ["--manifest", str(args.manifest), "--weights", str(weights), "--split", args.split]
        command += ["--bundle", str(args.bundle)]
        for _ in range(args.repeats):
            for name, backend in kinds.items():
                out = Path(folder) / "scores" / name
                program = [sys.executable, "-W", "ignore", *(("-c", AS_IT_COMES) if name == PLAIN else EVALUATE)]
                runs[name].append(run([*program, *command, "--backend", backend, "--out", str(out)]))
                with (out / "scores.csv").open() as file:
                    scores[name] = {row["patient"]: float(row["dsc"] or "nan") for row in csv.DictReader(file)}
    rows = []
    for name, dsc in scores.items():
        times, plain, torch = ([finished.wall_s for finished in runs[key]] for key in (name, PLAIN, TORCH))
        known = [value for value in dsc.values() if not math.isnan(value)]
        apart = max(abs(value - scores[PLAIN][patient]) for patient, value in dsc.items())
        peaks = [finished.peak_mb for finished in runs[name]]
        rows.append([name, spread(times), ratio(plain, times), ratio(torch, times), spread(peaks, "MB")])
        rows[-1] += [f"{sum(known) / len(known):.4f}", f"{apart:.4f}"]
    title = f"{args.bundle.name}, {len(scores[TORCH])} volumes, from start to table, {args.repeats} runs in turn"
    head = [
        "backend",
        "time",
        f"over {PLAIN}",
        f"over {TORCH}",
        "peak memory",
        "mean DSC",
        "largest difference of a DSC",
    ]
    print_table(title, head, rows)


if __name__ == "__main__":
    main()
