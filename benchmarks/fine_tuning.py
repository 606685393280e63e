"""Fine-tuning on images of another appearance, compared with training from scratch in the same number of steps.

Phantoms of one appearance train the start weights. Other phantoms get a gamma curve, a blur and noise. Networks are
trained on these from scratch, from the start weights, and from the weights of the bundle. The table shows the mean DSC
on the validation section of the other phantoms, for each seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import print_table
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline import build_manifest, evaluate_volumes, make_phantoms

START = ("--max_epochs", "8", "--steps_per_epoch", "40")
"""The options of the training that makes the start weights."""


def change_appearance(slices: Path, seed: int) -> None:
    """Give every slice below a folder another contrast, sharpness and noise; masks are not changed."""
    noise = np.random.default_rng(seed)
    for path in sorted(slices.glob("*/*[0-9].tif")):
        image = np.asarray(Image.open(path)).astype(np.float32) / 255
        changed = gaussian_filter(image**0.4, (1.5, 1.5, 0)) + noise.normal(0, 0.06, image.shape) * (image > 0.02)
        Image.fromarray((changed.clip(0, 1) * 255).astype(np.uint8)).save(path)


def cohort(folder: Path, *, patients: int, seed: int, changed: bool) -> Path:
    """Make new phantoms, half of them for validation, and return the folder of their manifest."""
    slices = make_phantoms(folder, patients=patients, size=128, slices=20, seed=seed)
    if changed:
        change_appearance(slices, seed)
    build_manifest(slices, folder / "manifest", split="random", validation_fraction=0.5)
    return folder / "manifest"


def train(manifest: Path, out: Path, seed: int, *options: str) -> Path:
    """Train a network, and return the path of its weights."""
    command = [sys.executable, "-m", "pipeline.train", "--quiet", "--manifest", str(manifest), "--out", str(out)]
    fixed = ["--image_size", "96", "--val_interval", "100", "--amp", "False", "--seed", str(seed)]
    subprocess.run([*command, *options, *fixed], check=True, stderr=subprocess.DEVNULL)
    return out / "model.pt"


def score(manifest: Path, weights: Path, out: Path) -> float:
    """The mean DSC on the validation section of a manifest."""
    return float(evaluate_volumes(manifest, "basic_unet", out, weights=weights).summary["dsc_mean"])


def measured(work: Path, seed: int, budget: tuple[str, ...]) -> dict[str, float]:
    """The mean DSC of each way of training, by name, for one seed."""
    first = cohort(work / "first", patients=16, seed=seed, changed=False)
    other = cohort(work / "other", patients=16, seed=seed + 1000, changed=True)
    start = train(first, work / "start", seed, *START)
    starts = {
        "from scratch": (),
        "from the phantoms' weights": ("--init", str(start)),
        "from basic_unet's": ("--init", "basic_unet"),
    }
    found = {
        "the phantoms' weights, on their own appearance": score(first, start, work / "own"),
        "the phantoms' weights, on the other appearance": score(other, start, work / "before"),
    }
    for number, (name, options) in enumerate(starts.items()):
        weights = train(other, work / str(number), seed, *budget, *options)
        found[name] = score(other, weights, work / f"scores_{number}")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds, one column each (default: 0 1 2)"
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="steps of each training on the other appearance (default: 100)"
    )
    args = parser.parse_args()
    budget = ("--max_epochs", "1", "--steps_per_epoch", str(args.steps))
    columns = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as work:
            columns[f"seed {seed}"] = measured(Path(work), seed, budget)
            print(columns, file=sys.stderr, flush=True)
    rows = [[way, *(f"{found[way]:.3f}" for found in columns.values())] for way in next(iter(columns.values()))]
    print_table(f"{args.steps} steps on the other appearance, mean DSC of its validation section", ["", *columns], rows)


if __name__ == "__main__":
    main()
