"""Draw synthetic skull-stripped heads for ``lgg-flair phantom``: random anatomy and lesions, slice by slice.

Lesions are bright on FLAIR, slightly dark on T1 and sometimes ring-enhancing. A simple FLAIR threshold does not find
them: the images also have periventricular caps, small foci, coil hot spots, a bias field, and a scanner gain that
differs between institutions. Coarse random fields carry all shapes, so that a patient is the same at every size. No
data of real patients are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.scripts.manifest import FLAIR

Plane = npt.NDArray[np.floating[Any]]
Image = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SITE_GAINS = {"AA": 0.65, "AB": 0.85, "AC": 1.0, "AD": 1.2, "AE": 1.5}
"""FLAIR gain of the scanner, by the institution token of the patient id."""

BRAIN_RADIUS = 0.84
"""Radius of the brain in head units. Positions are fractions of the head's radii: x right, y back, z up."""

# Brightness of tissues in the order of CHANNELS, at gain 1. It is chosen by eye to look like real images.
WHITE, GRAY, CSF, VESSEL = (84, 48, 86), (56, 63, 62), (22, 13, 25), (58, 40, 190)

FIELDS = {"shape": 5, "fold": 26, "sulcus": 15, "texture": 26, "bend": 9, "fringe": 20, "bias_t1": 3, "bias_flair": 3}
"""Number of nodes along each axis, by random field."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid of tissue. Lengths are in head units: fractions of the head's radii.

    Args:
        center: Its center: x to the right, y to the back, z upwards.
        radii: Its radii along x, y, z, before it is turned.
        angle: Its turn about the z axis, in radians.
    """

    center: Sequence[float]
    radii: Sequence[float]
    angle: float = 0.0

    def radius(self, x: Plane, y: Plane, z: float) -> Plane:
        """(H, W) distance of points, in head units, from the center: 1 on the surface, below 1 inside."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        dx, dy, dz = x - self.center[0], y - self.center[1], (z - self.center[2]) / self.radii[2]
        squared = ((cos * dx + sin * dy) / self.radii[0]) ** 2 + ((cos * dy - sin * dx) / self.radii[1]) ** 2 + dz * dz
        return squared**0.5


@dataclass(frozen=True)
class Lesion:
    """A lesion: a deformed ellipsoid with a soft edge, and perhaps a ring and a core.

    Args:
        body: The ellipsoid before it is deformed.
        gain: Factor on FLAIR, above 1.
        loss: Factor on both T1 sequences, below 1.
        edge: Width of the soft edge, as a share of the radius.
        ring: Factor of the enhancing ring on post-contrast T1; 1 for no ring.
        core: Factor of the dark core on all sequences; 1 for no core.
    """

    body: Ellipsoid
    gain: float
    loss: float
    edge: float
    ring: float
    core: float


@dataclass(frozen=True)
class Head:
    """All random properties of a patient, except the noise of each slice.

    Args:
        gains: Factor of the scanner on pre-contrast T1, FLAIR and post-contrast T1.
        radii: Half width and half depth of the head, as shares of half the slice.
        heights: Place of each slice along z, in head units.
        ventricles: Fluid, dark on FLAIR.
        caps: Bright rims at the ends of the ventricles on FLAIR, which are no lesion.
        nuclei: Gray matter inside the brain.
        foci: Small bright spots on FLAIR, which are no lesion.
        vessels: Vessels, bright on post-contrast T1.
        hot_spots: Regions that are brighter in all sequences, as near a receiver coil.
        lesions: The lesions.
        cap_gain: Factor of the caps on FLAIR.
        foci_gain: Factor of the foci on FLAIR.
        noise: Deviation of the scanner's noise, in gray values.
        fields: Smooth random fields, by name.
    """

    gains: tuple[float, float, float]
    radii: tuple[float, float]
    heights: list[float]
    ventricles: list[Ellipsoid]
    caps: list[Ellipsoid]
    nuclei: list[Ellipsoid]
    foci: list[Ellipsoid]
    vessels: list[Ellipsoid]
    hot_spots: list[Ellipsoid]
    lesions: list[Lesion]
    cap_gain: float
    foci_gain: float
    noise: float
    fields: dict[str, Image]


def _random(seed: int, *key: int) -> np.random.Generator:
    """The random stream of one patient or one block of patients. It does not depend on how many patients are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def patient_id(index: int, seed: int) -> str:
    """The id of a synthetic patient, such as ``PHANTOM_AC_0001``, where AC is the institution.

    Args:
        index: The patient's number, from 0.
        seed: Seed of the whole dataset, 0 or more.

    Examples:
        >>> patient_id(0, seed=0)
        'PHANTOM_AE_0001'
    """
    # The institution is the first draw of the patient's stream, and _draw_head draws it again.
    return f"PHANTOM_{_random(seed, index).choice(list(SITE_GAINS))}_{index + 1:04d}"


def make_patient(index: int, *, size: int, slices: int, seed: int, lesion: bool = True) -> tuple[Bytes, Bytes]:
    """The image and mask of one synthetic patient; the same arguments give the same bytes.

    No patient depends on another. In one patient of eight FLAIR takes the place of post-contrast T1, or of both T1
    sequences, as in the published data.

    Args:
        index: The patient's number, from 0.
        size: Height and width of a slice in pixels.
        slices: Mean number of slices. The patient's own number, D, differs by up to 25 %.
        seed: Seed of the whole dataset, 0 or more.
        lesion: Whether the patient has a lesion.

    Returns:
        The image, (D, H, W, 3) uint8 in the order of CHANNELS, and the mask, (D, H, W) uint8 of 0 and 255.
    """
    rng = _random(seed, index)
    head = _draw_head(rng, slices)
    if not lesion:
        head = replace(head, lesions=[])
    drawn = [_draw_slice(head, number, size, rng) for number in range(len(head.heights))]
    image, mask = (np.stack(planes) for planes in zip(*drawn, strict=True))
    block = _random(seed, index // 8, 1)
    if block.integers(8) == index % 8:
        for channel in (0, 2) if block.random() < 0.35 else (2,):
            image[..., channel] = image[..., FLAIR]
    return image, mask


def _draw_lesions(rng: np.random.Generator, heights: Sequence[float]) -> Iterator[Lesion]:
    """One lesion, sometimes with a satellite. It is centered on one of ``heights`` and away from the ventricles."""
    side = float(rng.choice((-1, 1)))
    size = 0.19 * (0.46 / 0.19) ** rng.random()
    wanted = rng.uniform(-0.35, 0.5)
    for satellite in range(1 + int(rng.random() < 0.25)):
        radius = size * (0.55 if satellite else 1.0)
        # The center lies exactly on a slice. A small lesion between two distant slices would leave an empty mask.
        z = min(heights, key=lambda height: abs(height - wanted))
        reach = math.sqrt(max(0.1, (0.75 * BRAIN_RADIUS) ** 2 - z * z))
        x = side * rng.uniform(min(0.26, 0.8 * reach), max(0.3, 0.9 * reach))
        depth = math.sqrt(max(0.0, reach**2 - x * x))
        center = (x, rng.uniform(-depth, depth), z)
        radii = [radius * rng.uniform(0.75, 1.3) for _ in range(3)]
        faint = rng.random() < 0.2
        yield Lesion(
            body=Ellipsoid(center, radii, rng.uniform(0, math.pi)),
            gain=rng.uniform(1.3, 1.4) if faint else rng.uniform(1.38, 1.8),
            loss=rng.uniform(0.62, 0.82),
            edge=rng.uniform(0.12, 0.4),
            ring=rng.uniform(1.3, 2.2) if rng.random() < 0.4 else 1.0,
            core=rng.uniform(0.55, 0.8) if rng.random() < 0.3 else 1.0,
        )
        wanted = z + rng.uniform(-0.2, 0.2)


def _scatter(rng: np.random.Generator, count: int, least: float, most: float, reach: float) -> Iterator[Ellipsoid]:
    """``count`` blobs with radii from ``least`` to ``most``, at most ``reach`` away from the head's center."""
    for _ in range(count):
        direction = rng.standard_normal(3)
        direction *= rng.uniform(0.4, 1.0) * reach / float(np.linalg.norm(direction))
        radius = rng.uniform(least, most)
        yield Ellipsoid(direction.tolist(), (radius, radius, 1.5 * radius))


def _draw_head(rng: np.random.Generator, slices: int) -> Head:
    """Draw a patient's anatomy, lesions and scanner. The order of the draws must not change: it decides the images."""
    site = rng.choice(list(SITE_GAINS))
    depth = max(3, round(slices * rng.uniform(0.75, 1.25)))
    heights = np.linspace(-0.92, 0.95, depth).tolist()
    flair_gain, t1_gain = SITE_GAINS[site] * rng.uniform(0.8, 1.25), rng.uniform(0.75, 1.25)
    wide, long = rng.uniform(0.7, 1.35), rng.uniform(0.8, 1.2)
    ventricles, caps, nuclei = [], [], []
    for side in (-1.0, 1.0):
        front = Ellipsoid((0.09 * side, -0.17 * long, 0.12), (0.055 * wide, 0.2 * long, 0.24), 0.35 * side)
        back = Ellipsoid((0.15 * side, 0.2 * long, 0.1), (0.06 * wide, 0.22 * long, 0.22), -0.4 * side)
        ventricles += [front, back]
        caps.append(Ellipsoid((0.15 * side, -0.37 * long, 0.12), (0.055, 0.065, 0.2)))
        caps.append(Ellipsoid((0.24 * side, 0.42 * long, 0.1), (0.065, 0.085, 0.2)))
        nuclei.append(Ellipsoid((0.2 * side, -0.02, 0.0), (0.09, 0.2, 0.22), 0.3 * side))
    ventricles.append(Ellipsoid((0.0, 0.02, -0.08), (0.022 * wide, 0.13, 0.16)))
    sinus = Ellipsoid((0.0, 0.8, 0.15), (0.045, 0.04, 0.6))
    return Head(
        gains=(t1_gain, flair_gain, t1_gain * rng.uniform(0.85, 1.15)),
        radii=(rng.uniform(0.84, 0.94), rng.uniform(0.97, 1.07)),
        heights=heights,
        ventricles=ventricles,
        caps=caps,
        nuclei=nuclei,
        foci=[*_scatter(rng, int(rng.integers(6, 18)), 0.03, 0.085, 0.65)],
        vessels=[*_scatter(rng, int(rng.integers(6, 14)), 0.012, 0.03, 0.75), sinus],
        hot_spots=[*_scatter(rng, 2, 0.22, 0.4, 0.85)],
        lesions=[*_draw_lesions(rng, heights[end_margin(depth) : -end_margin(depth)])],
        cap_gain=rng.uniform(1.5, 2.2),
        foci_gain=rng.uniform(1.5, 2.3),
        noise=rng.uniform(1.5, 4.0),
        fields={name: rng.standard_normal((n, n, n), dtype=np.float32) for name, n in FIELDS.items()},
    )


def end_margin(depth: int) -> int:
    """Number of slices without lesion at each end of a volume of ``depth`` slices."""
    return max(1, round(0.15 * depth))


def _plane(field: Image, z: float, size: int) -> Plane:
    """A smooth plane of a coarse random field at height ``z``, with about zero mean and unit variance."""
    position = (z + 1) / 2 * (len(field) - 1)
    low = min(int(position), len(field) - 2)
    part = np.float32(position - low)
    # Mixing two independent layers lowers the contrast between them. The root restores unit variance.
    mixed = ((1 - part) * field[low] + part * field[low + 1]) / np.sqrt((1 - part) ** 2 + part**2)
    plane: Plane = ndimage.zoom(mixed, size / len(field), order=3, mode="nearest")
    return plane


def _inside(distance: Plane, width: float) -> Plane:
    """1 where ``distance`` is positive, 0 where it is negative, and a ramp of ``width`` between (partial volume)."""
    ramp: Plane = np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)
    return ramp


def _paint(image: Image, weight: Plane, tissue: Sequence[float]) -> None:
    """Cover the image with a tissue, given by its brightness in each channel, by ``weight`` 0 to 1."""
    image += weight[..., None] * (np.asarray(tissue, dtype=np.float32) - image)


def _brighten(image: Image, weight: Plane, factors: Sequence[float]) -> None:
    """Multiply each channel by its factor, by ``weight`` 0 (not at all) to 1."""
    image *= 1 + weight[..., None] * (np.asarray(factors, dtype=np.float32) - 1)


def _draw_slice(head: Head, number: int, size: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """The (H, W, 3) image and the (H, W) mask of 0 and 255 of slice ``number``, from 0, with noise from ``rng``."""
    z = head.heights[number]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :] / head.radii[0], axis[:, None] / head.radii[1]
    noise = {name: _plane(field, z, size) for name, field in head.fields.items()}
    soft = 3.0 / size
    image = np.zeros((size, size, 3), dtype=np.float32)

    # The base of the brain is less tapered than its crown.
    deep = (np.sqrt(x * x + y * y + (z if z > 0 else 0.84 * z) ** 2) + 0.02 * noise["shape"]) / BRAIN_RADIUS
    brain = _inside(1 - deep, soft)
    white = _inside(0.84 + 0.08 * noise["fold"] - deep, 0.08)
    _paint(image, brain, CSF)
    _paint(image, _inside(0.975 + 0.02 * noise["fold"] - deep, soft), GRAY)
    _paint(image, white, WHITE)
    _paint(image, _inside(0.045 - np.abs(noise["sulcus"]), 0.09) * _inside(deep - 0.72, 0.15) * brain, CSF)
    _paint(image, _inside(0.012 - np.abs(x) + 0 * y, soft) * _inside(deep - 0.45, 0.1) * brain * 0.7, CSF)  # falx
    for nucleus in head.nuclei:
        _paint(image, _inside(1 - nucleus.radius(x, y, z), 0.3) * brain, GRAY)
    _brighten(image, brain * np.clip(0.5 * noise["texture"], -1, 1), (1.03, 1.2, 1.03))

    # These are bright only on FLAIR, but they are no lesions.
    for cap in head.caps:
        _brighten(image, _inside(1 - cap.radius(x, y, z) + 0.2 * noise["fringe"], 0.5) * brain, (1, head.cap_gain, 1))
    for spot in head.foci:
        _brighten(image, _inside(1 - spot.radius(x, y, z), 0.5) * white, (1, head.foci_gain, 1))

    bent = 1 + 0.06 * noise["bend"]
    hollow = brain * np.max([_inside(bent - ventricle.radius(x, y, z), 0.2) for ventricle in head.ventricles], axis=0)
    mask = np.zeros((size, size), dtype=np.uint8)
    margin = end_margin(len(head.heights))
    if margin <= number < len(head.heights) - margin:
        for item in head.lesions:
            distance = 1 - item.body.radius(x, y, z)
            # The deformation fades towards the center, which therefore always belongs to the lesion.
            distance += (0.2 * noise["bend"] + 0.09 * noise["fringe"]) * np.clip(1.2 - distance, 0, 1)
            inner = _inside(0.965 - deep, soft)
            weight = _inside(distance, item.edge) * inner
            _paint(image, weight * 0.75, GRAY)  # edema hides the folds below it
            _brighten(image, weight * (1 + 0.07 * noise["texture"]), (item.loss, item.gain, item.loss))
            _brighten(image, _inside(distance - 0.5, 0.2) * inner, (item.core, item.core, item.core))
            _brighten(image, _inside(0.13 - np.abs(distance - 0.45), 0.15) * inner, (1, 1, item.ring))
            mask[weight * (1 - hollow) >= 0.5] = 255
    _paint(image, hollow, CSF)
    for vessel in head.vessels:
        _paint(image, _inside(1 - vessel.radius(x, y, z), 0.6), VESSEL)
    for spot in head.hot_spots:  # bright in every channel: near a receiver coil
        image *= 1 + 0.55 * np.exp(-(spot.radius(x, y, z) ** 2))[..., None]
    image *= brain[..., None]  # skull-stripped
    return _scan(image, head, noise, rng), mask


def _scan(image: Image, head: Head, noise: dict[str, Plane], rng: np.random.Generator) -> Bytes:
    """Apply the scanner's gain, bias field and Rician noise. The background is never completely black."""
    for channel, (gain, bias) in enumerate(zip(head.gains, ("bias_t1", "bias_flair", "bias_t1"), strict=True)):
        image[..., channel] *= gain * np.exp(0.2 * noise[bias])
    real, imaginary = head.noise * rng.standard_normal((2, *image.shape), dtype=np.float32)
    magnitude = np.sqrt((image + real) ** 2 + imaginary**2)
    gray: Bytes = np.clip(np.rint(magnitude), 0, 255).astype(np.uint8)
    return gray
