"""Read mutated slices, names, volumes, manifests and weights: each is accepted or refused with a clear error, and soon.

    python -m stress.fuzz --count 10000 --seed 0

This prints one line for each kind of input: tried, failed, and the time of the slowest. An input fails if it raises
anything but a ``PipelineError`` or takes more than ``MAX_BYTES``. The run fails if one takes more than ``MAX_SECONDS``.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipeline.cohort.manifest import read_manifest, select
from pipeline.cohort.names import parse_name
from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image, nifti_bytes
from pipeline.imaging.pictures import decode_slice
from pipeline.scripts.volumes import check_image
from pipeline.scripts.weights import read_state
from stress.flips import damaged

MAX_SECONDS, MAX_BYTES, HANG_SECONDS = 10.0, 2 * 2**30, 120.0


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four damages; now and then a piece is doubled too."""
    for _ in range(rng.randint(1, 4)):
        data = damaged(data, rng) or b"\0"
        if rng.random() < 0.2:
            start, length = rng.randrange(len(data)), rng.randrange(1, 64)
            data = data[:start] + data[start : start + length] * 2 + data[start + length :]
    return data


def tiff(kind: str, compression: str | None) -> bytes:
    """The bytes of a correct TIFF slice.

    Args:
        kind: ``image`` or ``mask``.
        compression: The compression as Pillow names it; None for no compression.
    """
    shape = (24, 20, 3) if kind == "image" else (24, 20)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", compression=compression)
    return buffer.getvalue()


def sound_manifest() -> bytes:
    """The bytes of a manifest of one patient, as ``lgg-flair manifest`` writes it."""
    item = {"image": "volumes/P_1_image.nii.gz", "label": "volumes/P_1_label.nii.gz", "patient": "P_1", "fold": 0}
    patient = {"lesion_voxels": 3, "image_sha256": "a" * 64, "label_sha256": "b" * 64}
    counts = {"found": 2, "used": 2, "skipped": 0, "refused": 0}
    content = {"training": [item], "validation": [], "test": [], "patients": {"P_1": patient}, "counts": counts}
    return json.dumps(content).encode()


def kinds(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], Any]]]:
    """For each kind of input: correct inputs, and the function that reads them."""
    import torch

    weights = io.BytesIO()
    torch.save({"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4)}, weights)

    def volume(data: bytes) -> None:
        path = folder / "v_image.nii.gz"
        path.write_bytes(data)
        check_image(path)
        load_image(path)

    def manifest(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        select(read_manifest(folder), "all")

    plain = nifti_bytes(np.zeros((8, 9, 4, 3), np.uint8))
    slices = [tiff(kind, how) for kind in ("image", "mask") for how in (None, "tiff_lzw", "tiff_deflate", "packbits")]
    names = ["TCGA_CS_4941_19960909_1.tif", "a/b_2_mask.tiff", "P\u00e4tient_003.TIF", "._x_1.tif"]
    return {
        "slices": (slices, lambda data: (decode_slice(data, "image"), decode_slice(data, "mask"))),
        "names": ([name.encode() for name in names], lambda data: parse_name(_path(data))),
        "volumes": ([plain], volume),
        "manifests": ([sound_manifest()], manifest),
        "weights": (
            [weights.getvalue()],
            lambda data: read_state(data, Path("model.pt"), torch.device("cpu")),
        ),
    }


def _path(data: bytes) -> PurePosixPath:
    return PurePosixPath(data.decode("utf-8", "surrogateescape").replace("\0", ""))


def fuzz(count: int, seed: int) -> dict[str, tuple[int, int, float]]:
    """Mutate inputs and read them.

    Args:
        count: The number of inputs, all kinds together.
        seed: The random seed of the mutations.

    Returns:
        Kind of input -> (tried, failed, seconds of the slowest).
    """
    rng = random.Random(seed)
    signal.signal(signal.SIGALRM, hanging)
    with tempfile.TemporaryDirectory() as name:
        readers = kinds(Path(name))
        found = dict.fromkeys(readers, (0, 0, 0.0))
        for number in range(count):
            kind = list(readers)[number % len(readers)]
            sound, read = readers[kind]
            data = mutated(rng.choice(sound), rng)
            start, failed, held = time.monotonic(), 0, peak()
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            try:
                read(data)
            except PipelineError:
                pass
            except BaseException as error:  # noqa: BLE001
                print(f"{kind}: {type(error).__name__}: {error}: {data[:200]!r}", file=sys.stderr)
                failed = 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.monotonic() - start
            failed |= peak() - held > MAX_BYTES
            tried, before, slowest = found[kind]
            found[kind] = (tried + 1, before + failed, max(slowest, took))
    return found


def hanging(*_: object) -> None:
    """Handle the alarm that ends an input which takes too long.

    Raises:
        TimeoutError: Always.
    """
    raise TimeoutError("hangs")


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Run the harness, print one line for each kind, and return 1 if something failed or was slow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = fuzz(args.count, args.seed)
    for kind, (tried, failed, slowest) in found.items():
        print(f"| fuzzed, {kind}, seed {args.seed} | {tried} | {failed} | slowest {slowest:.2f} s |")
    print(f"peak memory {peak() / 1e6:.0f} MB")
    return any(failed or slowest > MAX_SECONDS for _, failed, slowest in found.values())


if __name__ == "__main__":
    sys.exit(main())
