"""A small synthetic dataset in the published folder layout, so that every command runs without the LGG download.

Each patient is a drawn head: scalp, skull, folded cortex, ventricles, and lesions that are bright on FLAIR, slightly
dark on T1 and sometimes ring-enhancing. Bright scalp, periventricular caps, small foci, coil hot spots and a scanner
gain that differs between institutions make a FLAIR threshold fail. Nothing in it is taken from a patient.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, run_cli
from pipeline.records import CHANNELS

if TYPE_CHECKING:  # numpy loads only when a phantom is drawn, so that --help answers at once
    import numpy as np
    import numpy.typing as npt

    Plane = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

RECIPE = 1
"""Version of the drawing; raise it when the same seed gives other bytes, so that old and new are never mixed."""

LIMITS = {"patients": (1, 10_000), "size": (32, 1024), "slices": (4, 200), "seed": (0, 2**32 - 1)}
SITE_GAINS = {"AA": 0.65, "AB": 0.85, "AC": 1.0, "AD": 1.2, "AE": 1.5}
"""Institution token of a patient id -> FLAIR gain of its scanner."""

BRAIN_RADIUS = 0.84
"""Radius of the brain in head units: positions are fractions of the head's radii, x right, y back, z up."""

# Brightness by tissue in the order of CHANNELS, at gain 1; chosen by eye to look like T1, FLAIR, T1 with contrast.
WHITE, GREY, CSF, BONE = (82, 50, 84), (60, 63, 66), (22, 13, 25), (11, 9, 12)
SCALP, FACE, VESSEL = (185, 125, 180), (62, 50, 68), (58, 40, 190)


@dataclass(frozen=True)
class _Ellipsoid:
    """A blob in head units, turned about the z axis by ``angle`` radians."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0.0

    def radius(self, x: Plane, y: Plane, z: float) -> Plane:
        """Normalised distance from the centre: 1 on the surface, below 1 inside."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        dx, dy, dz = x - self.centre[0], y - self.centre[1], (z - self.centre[2]) / self.radii[2]
        squared = ((cos * dx + sin * dy) / self.radii[0]) ** 2 + ((cos * dy - sin * dx) / self.radii[1]) ** 2 + dz * dz
        root: Plane = squared**0.5
        return root


@dataclass(frozen=True)
class _Lesion:
    """A deformed ellipsoid: FLAIR ``gain`` above 1, T1 ``loss`` below 1, soft ``edge``, ring and core optional."""

    body: _Ellipsoid
    gain: float
    loss: float
    edge: float
    ring: float
    core: float


@dataclass(frozen=True)
class _Head:
    """Everything random about a patient except the noise of each slice."""

    site: str
    gains: tuple[float, float, float]
    radii: tuple[float, float]
    heights: tuple[float, ...]
    ventricles: tuple[_Ellipsoid, ...]
    caps: tuple[_Ellipsoid, ...]
    nuclei: tuple[_Ellipsoid, ...]
    foci: tuple[_Ellipsoid, ...]
    vessels: tuple[_Ellipsoid, ...]
    hot_spots: tuple[_Ellipsoid, ...]
    lesions: tuple[_Lesion, ...]
    cap_gain: float
    foci_gain: float
    noise: float
    fields: dict[str, npt.NDArray[np.float32]]


def _random(seed: int, *key: int) -> np.random.Generator:
    """The stream of one patient (or one block of patients), independent of how many patients are drawn."""
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _site(rng: np.random.Generator) -> str:
    return tuple(SITE_GAINS)[int(rng.integers(len(SITE_GAINS)))]


def patient_id(index: int, seed: int) -> str:
    """Name of patient ``index`` (from 0), such as ``PHANTOM_AC_0001``; the institution is part of the drawing."""
    return f"PHANTOM_{_site(_random(seed, index))}_{index + 1:04d}"


def _missing_sequences(index: int, seed: int) -> tuple[str, ...]:
    """One patient in each block of eight lacks post-contrast, or both T1 sequences."""
    rng = _random(seed, index // 8, 1)
    unlucky, both = int(rng.integers(8)), bool(rng.random() < 0.35)
    if index % 8 != unlucky:
        return ()
    return (CHANNELS[0], CHANNELS[2]) if both else (CHANNELS[2],)


def _draw_lesions(rng: np.random.Generator, heights: Sequence[float], margin: int) -> tuple[_Lesion, ...]:
    """One lesion, or one with a satellite, centred on an inner slice and away from the ventricles."""
    inner = heights[margin : len(heights) - margin]
    lesions: list[_Lesion] = []
    side = rng.choice((-1, 1))
    size = 0.14 * (0.40 / 0.14) ** rng.random()
    wanted = rng.uniform(-0.35, 0.5)
    for satellite in range(1 + int(rng.random() < 0.25)):
        radius = size * (0.55 if satellite else 1.0)
        # Centred exactly on a slice: a small lesion between two distant slices would leave an empty mask.
        z = min(inner, key=lambda height: abs(height - wanted))
        reach = math.sqrt(max(0.1, (0.75 * BRAIN_RADIUS) ** 2 - z * z))
        x = float(side) * rng.uniform(min(0.26, 0.8 * reach), max(0.3, 0.9 * reach))
        depth = math.sqrt(max(0.0, reach**2 - x * x))
        centre = (x, rng.uniform(-depth, depth), z)
        stretch = rng.uniform(0.75, 1.3, size=3) * radius
        faint = rng.random() < 0.2
        lesions.append(
            _Lesion(
                body=_Ellipsoid(centre, (stretch[0], stretch[1], stretch[2]), rng.uniform(0, math.pi)),
                gain=rng.uniform(1.25, 1.4) if faint else rng.uniform(1.45, 2.1),
                loss=rng.uniform(0.68, 0.88),
                edge=rng.uniform(0.12, 0.5),
                ring=rng.uniform(1.3, 2.2) if rng.random() < 0.4 else 1.0,
                core=rng.uniform(0.55, 0.8) if rng.random() < 0.3 else 1.0,
            )
        )
        wanted = z + rng.uniform(-0.2, 0.2)
    return tuple(lesions)


def _draw_head(rng: np.random.Generator, slices: int) -> _Head:
    """Draw a patient's anatomy, lesions and scanner; the order of the draws is part of the recipe."""
    import numpy as np

    site = _site(rng)
    depth = max(3, round(slices * rng.uniform(0.75, 1.25)))
    heights = tuple(float(z) for z in np.linspace(-0.92, 0.95, depth))
    flair_gain, t1_gain = SITE_GAINS[site] * rng.uniform(0.8, 1.25), rng.uniform(0.75, 1.25)
    wide, long = rng.uniform(0.7, 1.35), rng.uniform(0.8, 1.2)
    ventricles, caps, nuclei = [], [], []
    for side in (-1.0, 1.0):
        front = _Ellipsoid((0.09 * side, -0.17 * long, 0.12), (0.055 * wide, 0.2 * long, 0.24), 0.35 * side)
        back = _Ellipsoid((0.15 * side, 0.2 * long, 0.1), (0.06 * wide, 0.22 * long, 0.22), -0.4 * side)
        ventricles += [front, back]
        caps.append(_Ellipsoid((0.15 * side, -0.37 * long, 0.12), (0.055, 0.065, 0.2)))
        caps.append(_Ellipsoid((0.24 * side, 0.42 * long, 0.1), (0.065, 0.085, 0.2)))
        nuclei.append(_Ellipsoid((0.2 * side, -0.02, 0.0), (0.09, 0.2, 0.22), 0.3 * side))
    ventricles.append(_Ellipsoid((0.0, 0.02, -0.08), (0.022 * wide, 0.13, 0.16)))

    def scatter(count: int, least: float, most: float, reach: float) -> tuple[_Ellipsoid, ...]:
        spots = []
        for _ in range(count):
            direction = rng.standard_normal(3)
            direction *= rng.uniform(0.4, 1.0) * reach / float(np.linalg.norm(direction))
            radius = rng.uniform(least, most)
            centre = (float(direction[0]), float(direction[1]), float(direction[2]))
            spots.append(_Ellipsoid(centre, (radius, radius, 1.5 * radius)))
        return tuple(spots)

    nodes = {"shape": 5, "fold": 16, "sulcus": 11, "texture": 26, "bend": 9, "fringe": 20, "bias_t1": 3, "bias_flair": 3}
    sinus = _Ellipsoid((0.0, 0.8, 0.15), (0.045, 0.04, 0.6))
    return _Head(
        site=site,
        gains=(t1_gain, flair_gain, t1_gain * rng.uniform(0.85, 1.15)),
        radii=(rng.uniform(0.66, 0.76), rng.uniform(0.8, 0.9)),
        heights=heights,
        ventricles=tuple(ventricles),
        caps=tuple(caps),
        nuclei=tuple(nuclei),
        foci=scatter(int(rng.integers(2, 14)), 0.02, 0.05, 0.6),
        vessels=(*scatter(int(rng.integers(6, 14)), 0.012, 0.03, 0.75), sinus),
        hot_spots=scatter(2, 0.22, 0.4, 0.85),
        lesions=_draw_lesions(rng, heights, _margin(depth)),
        cap_gain=rng.uniform(1.3, 2.0),
        foci_gain=rng.uniform(1.4, 2.2),
        noise=rng.uniform(1.5, 4.0),
        fields={name: rng.standard_normal((n, n, n), dtype=np.float32) for name, n in nodes.items()},
    )


def _margin(depth: int) -> int:
    """Slices at either end of a volume that never hold lesion."""
    return max(1, round(0.15 * depth))


def _plane(field: npt.NDArray[np.float32], z: float, size: int) -> Plane:
    """The plane of a coarse random field at height ``z``, smooth, about zero mean and unit variance."""
    import numpy as np
    from scipy import ndimage

    position = (z + 1) / 2 * (len(field) - 1)
    low = min(int(position), len(field) - 2)
    part = np.float32(position - low)
    # Mixing two independent layers would lower the contrast halfway; the root restores unit variance.
    mixed = ((1 - part) * field[low] + part * field[low + 1]) / np.sqrt((1 - part) ** 2 + part**2)
    plane: Plane = ndimage.zoom(mixed, size / len(field), order=3, mode="nearest")
    return plane


def _inside(distance: Plane, width: float) -> Plane:
    """1 where ``distance`` is positive, 0 where negative, a ramp of ``width`` between (partial volume)."""
    import numpy as np

    ramp: Plane = np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)
    return ramp


def _draw_slice(
    head: _Head, number: int, size: int, rng: np.random.Generator, *, lesion: bool
) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Draw one slice.

    Args:
        head: the patient.
        number: slice, from 0.
        size: height and width, pixels.
        rng: source of the noise.
        lesion: False leaves the lesions out of image and mask.

    Returns:
        (H, W, 3) uint8 slice in the order of CHANNELS and (H, W) bool mask.
    """
    import numpy as np

    z = head.heights[number]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :] / head.radii[0], axis[:, None] / head.radii[1]
    noise = {name: _plane(field, z, size) for name, field in head.fields.items()}
    soft = 3.0 / size

    # The skull base is less tapered than the crown, so that the lower slices show a face and not a shrinking brain.
    outline = np.sqrt(x * x + y * y + (z if z > 0 else 0.6 * z) ** 2) + 0.02 * noise["shape"]
    deep = (np.sqrt(x * x + y * y + z * z) + 0.02 * noise["shape"]) / BRAIN_RADIUS
    brain = _inside(1 - deep, soft)
    image = np.zeros((size, size, 3), dtype=np.float32)

    def paint(weight: Plane, tissue: Sequence[float]) -> None:
        image[...] += weight[..., None] * (np.asarray(tissue, dtype=np.float32) - image)

    def brighten(weight: Plane, factors: Sequence[float]) -> None:
        image[...] *= 1 + weight[..., None] * (np.asarray(factors, dtype=np.float32) - 1)

    paint(_inside(1 - outline, soft), SCALP)
    paint(_inside(0.93 - outline, soft), FACE)
    brighten(_inside(0.93 - outline, soft), (1, 1, 1))
    image *= 1 + 0.45 * np.clip(noise["fold"], -2, 2)[..., None] * (outline < 0.92)[..., None]
    paint(_inside(1.09 - deep, soft), BONE)

    paint(brain, CSF)
    paint(_inside(0.975 + 0.02 * noise["fold"] - deep, soft), GREY)
    white = _inside(0.83 + 0.09 * noise["fold"] - deep, 0.08)
    paint(white, WHITE)
    paint(_inside(0.045 - np.abs(noise["sulcus"]), 0.09) * _inside(deep - 0.72, 0.15) * brain, CSF)
    paint(_inside(0.012 - np.abs(x) + 0 * y, soft) * _inside(deep - 0.45, 0.1) * brain * 0.7, CSF)
    for nucleus in head.nuclei:
        paint(_inside(1 - nucleus.radius(x, y, z), 0.3) * brain, GREY)
    brighten(brain * np.clip(0.5 * noise["texture"], -1, 1), (1.03, 1.14, 1.03))

    for cap in head.caps:
        brighten(_inside(1 - cap.radius(x, y, z) + 0.2 * noise["fringe"], 0.5) * brain, (1, head.cap_gain, 1))
    for spot in head.foci:
        brighten(_inside(1 - spot.radius(x, y, z), 0.5) * white, (1, head.foci_gain, 1))
    hollow = np.zeros((size, size), dtype=np.float32)
    for ventricle in head.ventricles:
        hollow = np.maximum(hollow, _inside(1 + 0.06 * noise["bend"] - ventricle.radius(x, y, z), 0.2))
    hollow *= brain

    mask = np.zeros((size, size), dtype=np.bool_)
    margin = _margin(len(head.heights))
    if lesion and margin <= number < len(head.heights) - margin:
        inner = _inside(0.965 - deep, soft)
        for item in head.lesions:
            distance = 1 - item.body.radius(x, y, z)
            # The deformation fades towards the centre, which therefore always belongs to the lesion.
            distance += (0.24 * noise["bend"] + 0.09 * noise["fringe"]) * np.clip(1.2 - distance, 0, 1)
            weight = _inside(distance, item.edge) * inner
            mottle = 1 + 0.07 * noise["texture"]
            paint(weight * 0.75, GREY)  # oedema hides the folds below it
            brighten(weight * mottle, (item.loss, item.gain, item.loss))
            brighten(_inside(distance - 0.5, 0.2) * inner, (item.core, item.core, item.core))
            brighten(_inside(0.13 - np.abs(distance - 0.45), 0.15) * inner, (1, 1, item.ring))
            mask |= weight * (1 - hollow) >= 0.5
    paint(hollow, CSF)
    for vessel in head.vessels:
        paint(_inside(1 - vessel.radius(x, y, z), 0.6), VESSEL)

    coil = np.zeros((size, size), dtype=np.float32)
    for hot in head.hot_spots:
        coil += 0.55 * np.exp(-(hot.radius(x, y, z) ** 2))
    for channel, (gain, bias) in enumerate(zip(head.gains, ("bias_t1", "bias_flair", "bias_t1"), strict=True)):
        image[..., channel] *= gain * (1 + coil) * np.exp(0.12 * noise[bias])
    # Magnitude images carry Rician noise: the background is never quite black.
    real, imaginary = head.noise * rng.standard_normal((2, size, size, 3), dtype=np.float32)
    magnitude = np.sqrt((image + real) ** 2 + imaginary**2)
    return np.clip(np.rint(magnitude), 0, 255).astype(np.uint8), mask


def make_patient(
    index: int, *, size: int, slices: int, seed: int, lesion: bool = True
) -> tuple[Bytes, Bytes, tuple[str, ...]]:
    """Draw a synthetic patient; the same arguments always give the same bytes.

    Args:
        index: patient number, from 0; no patient depends on another.
        size: height and width H = W, pixels.
        slices: mean number of slices; the patient's own D differs by up to 25 %.
        seed: of the whole dataset.
        lesion: False gives the same head without its lesions.

    Returns:
        (D, H, W, 3) uint8 image in the order of CHANNELS, (D, H, W) uint8 mask of 0 and 255, and the names of the
        sequences that were replaced by FLAIR, as the publishers of the LGG data did with a missing one.

    Raises:
        PipelineError: an argument is out of its range.
    """
    import numpy as np

    _check_range("size", size)
    _check_range("slices", slices)
    _check_range("seed", seed)
    rng = _random(seed, index)
    head = _draw_head(rng, slices)
    drawn = [_draw_slice(head, number, size, rng, lesion=lesion) for number in range(len(head.heights))]
    image = np.stack([plane for plane, _ in drawn])
    mask = np.where(np.stack([mask for _, mask in drawn]), np.uint8(255), np.uint8(0))
    missing = _missing_sequences(index, seed)
    for name in missing:
        image[..., CHANNELS.index(name)] = image[..., CHANNELS.index("FLAIR")]
    return image, mask, missing


def _check_range(name: str, value: int) -> None:
    least, most = LIMITS[name]
    if not least <= value <= most:
        raise PipelineError(f"{name} is {value}, expected {least} to {most}. Pass --{name} within that range.")


def _prepare(out: Path, call: dict[str, int], force: bool) -> Path:
    """Make OUT/kaggle_3m ready for this call, or refuse; a finished or interrupted run of the same call is kept.

    Raises:
        PipelineError: the folder holds something else.
    """
    folder, stamp = out / "kaggle_3m", out / "phantom.json"
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [entry.name for entry in held if not (entry.is_dir() and entry.name.startswith("PHANTOM_"))]
    if foreign:  # not even --force deletes what may be somebody's real data
        raise PipelineError(
            f"{folder} holds {len(foreign)} entries that are no phantoms, such as {foreign[0]}. Choose another folder."
        )
    same = stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp_text(call)
    if held and not same and not force:
        raise PipelineError(
            f"{folder} already holds {len(held)} patients of another call. Choose another folder or pass --force to "
            "replace them."
        )
    if held and force:
        for entry in held:
            shutil.rmtree(entry)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(_stamp_text(call), encoding="utf-8")
    return folder


def _stamp_text(call: dict[str, int]) -> str:
    return json.dumps({"recipe": RECIPE, **call}, indent=2) + "\n"


def _write_patient(folder: Path, patient: str, image: Bytes, mask: Bytes) -> None:
    """Write the slices beside ``folder`` and rename them into it, so that a kill leaves no half patient."""
    from PIL import Image

    partial = folder.parent / f".{patient}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    for number, (plane, label) in enumerate(zip(image, mask, strict=True), start=1):
        Image.fromarray(plane).save(partial / f"{patient}_{number}.tif")
        Image.fromarray(label).save(partial / f"{patient}_{number}_mask.tif")
    partial.rename(folder / patient)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write the synthetic dataset.

    Raises:
        PipelineError: bad arguments, a folder in use, no space.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.phantom", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that receives kaggle_3m/")
    parser.add_argument("--patients", type=int, default=24, help="number of patients (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default %(default)s)")
    parser.add_argument("--slices", type=int, default=20, help="mean slices a patient, +-25 %% (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default %(default)s)")
    parser.add_argument("--lesion-free", type=int, default=0, metavar="N", help="leave the first N without lesion")
    parser.add_argument("--force", action="store_true", help="replace the phantoms of another call in OUT")
    args: Any = parser.parse_args(argv)
    for name in LIMITS:
        _check_range(name, getattr(args, name))
    if not 0 <= args.lesion_free <= args.patients:
        raise PipelineError(
            f"lesion-free is {args.lesion_free}, expected 0 to the number of patients, {args.patients}. "
            "Pass a smaller --lesion-free or more --patients."
        )
    try:
        folder = _generate(args)
    except OSError as error:
        raise PipelineError(f"{args.out}: cannot write the phantoms: {error}. Choose a writable OUT with space.") from error
    print(f"{args.patients} phantoms in {folder}; next: python -m pipeline.manifest {folder} --split random --out FOLDER")
    return 0


def _generate(args: argparse.Namespace) -> Path:
    from tqdm import tqdm

    needed = round(1.25 * args.patients * args.slices * args.size**2 * 4)
    existing = next(parent for parent in (args.out, *args.out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PipelineError(
            f"{args.out}: the phantoms may need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. "
            "Pass smaller --patients, --size or --slices, or choose another disk."
        )
    call = {name: getattr(args, name) for name in (*LIMITS, "lesion_free")}
    folder = _prepare(args.out, call, args.force)
    for index in tqdm(range(args.patients), desc="phantoms", unit="patient"):
        patient = patient_id(index, args.seed)
        if (folder / patient).is_dir():  # complete, because it was renamed into place
            continue
        lesion = index >= args.lesion_free
        image, mask, _ = make_patient(index, size=args.size, slices=args.slices, seed=args.seed, lesion=lesion)
        _write_patient(folder, patient, image, mask)
    return folder


if __name__ == "__main__":
    sys.exit(run_cli(main))
