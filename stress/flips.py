"""Damage slices, volumes, manifests and weights at random: each damage must be reported before it changes a result.

    python -m stress.flips --count 1000 --seed 0

This prints one line for each kind of file: tried, failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import manifest, phantom
from pipeline.cohort.manifest import read_manifest, select, verify_volume
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image, load_label
from pipeline.scripts.files import checksum_path
from pipeline.scripts.manifest import refuse_changed_volumes
from pipeline.scripts.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "bundles" / "basic_unet" / "models"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one damage: a flipped bit, a missing end, or sixteen bytes of zeros or noise."""
    while True:
        kind, place = rng.randrange(4), rng.randrange(len(data))
        if kind == 0:
            new = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif kind == 1:
            new = data[:place]
        else:
            new = data[:place] + (bytes(16) if kind == 2 else rng.randbytes(16)) + data[place + 16 :]
        if new != data:
            return new


def flips(count: int, seed: int) -> dict[str, tuple[int, int]]:
    """Damage one file at a time, look whether the damage is reported, and restore the file.

    Args:
        count: The number of damages.
        seed: The random seed of files, places and kinds of damage.

    Returns:
        Kind of file -> (tried, not reported).
    """
    rng, tried, failed = random.Random(seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        phantom.main([str(folder), "--patients", "4", "--size", "48", "--slices", "6"])
        source, built = folder / "kaggle_3m", folder / "manifest"
        split = ["--split", "random", "--validation-fraction", "0.25", "--folds", "2"]
        manifest.main([str(source), "--out", str(built), *split])
        for file in ("model.pt", "training.json"):
            shutil.copy(MODELS / file, folder)

        def volumes() -> None:
            for volume in select(read_manifest(built), "all"):
                verify_volume(volume)

        images, labels = (sorted(built.rglob(f"*_{kind}.nii.gz")) for kind in ("image", "label"))
        contents = {path: (load_image if path in images else load_label)(path) for path in (*images, *labels)}

        def same(paths: list[Path], load: Callable[[Path], Any]) -> None:
            """Read volumes of no manifest: damage is reported or changes no voxel, as in the date of gzip's header."""
            for path in paths:
                if not np.array_equal(load(path), contents[path]):
                    return
            raise PipelineError("nothing has changed")

        listed = json.loads((built / "manifest.json").read_text())["training"]
        items = [{**item, **{kind: built / item[kind] for kind in ("image", "label")}} for item in listed]

        def trained() -> None:
            refuse_changed_volumes(str(built), items)

        def slices() -> None:
            manifest.main([str(source), "--out", str(built), *split, "--verify"])

        def weights() -> None:
            if not read_weights(folder / "model.pt", folder).record:
                raise PipelineError("no record")

        kinds: dict[str, tuple[list[Path], Callable[[], None]]] = {
            "slices": (sorted(source.rglob("*.tif")), slices),
            "volumes": (sorted(built.rglob("*.nii.gz")), volumes),
            "manifest": ([built / "manifest.json", checksum_path(built / "manifest.json")], volumes),
            "manifest of a training": ([built / "manifest.json", checksum_path(built / "manifest.json")], trained),
            "weights": ([folder / "model.pt"], weights),
            "volumes of no manifest": (images, lambda: same(images, load_image)),
            "masks": (labels, lambda: same(labels, load_label)),
        }
        for check in (slices, volumes, weights, trained):
            check()  # The undamaged files must pass.
        for number in range(count):
            kind = list(kinds)[number % len(kinds)]
            paths, check = kinds[kind]
            path = rng.choice(paths)
            whole = path.read_bytes()
            path.write_bytes(damaged(whole, rng))
            tried[kind] += 1
            with contextlib.suppress(PipelineError):
                check()
                failed[kind] += 1
            path.write_bytes(whole)
    return {kind: (tried[kind], failed[kind]) for kind in kinds}


def main() -> int:
    """Run the harness, print one line for each kind, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = flips(args.count, args.seed)
    for kind, (tried, failed) in found.items():
        print(f"| damage, {kind}, seed {args.seed} | {tried} | {failed} |")
    return any(failed for _, failed in found.values())


if __name__ == "__main__":
    sys.exit(main())
