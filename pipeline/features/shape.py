"""Shape features of a lesion's mask: those of the LGG radiogenomics papers, and common ones.

Sources, by their short names in this package:

- Buda 2019: Buda, Saha, Mazurowski, Computers in Biology and Medicine 109 (2019), section "Extraction of shape
  features". It uses angular standard deviation, bounding ellipsoid volume ratio and margin fluctuation.
- Mazurowski 2017: Mazurowski et al., Journal of Neuro-Oncology 133 (2017), section "Imaging features".
- Czarnek 2017: Czarnek et al., Journal of Neuro-Oncology 132 (2017), these features and two more for
  glioblastoma.
- Zwanenburg 2020: the Image Biomarker Standardisation Initiative, Radiology 295 (2020), and its reference manual (arXiv
  1612.07003), section "Morphological features".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
BINS = 10
"""Equal angles around the centroid (Buda 2019)."""
SMOOTHED = 0.1
"""Length of the averaging filter of the margin fluctuation, as a share of the perimeter (Czarnek 2017)."""
STEP = 0.5
"""Distance between points of a resampled outline, in pixels."""
PRECISION = 1e-4
"""Relative error of the bounding ellipsoid's volume, at most."""


@dataclass(frozen=True)
class ShapeFeatures:
    """The shape of one lesion. A feature that is not defined, or needs a voxel size that is not known, is None.

    The first three features have no unit and need no voxel size. Without a spacing, pixels count as square. Few voxels
    or slices lower the volume ratio: the ellipsoid holds the corners of the voxels, which stick out of a smooth
    surface.

    The features of the outline are those of the slice with the largest area. Their centroid is that of the area inside
    the outline of its largest part. Both are choices of this package.

    Sources are Buda et al., Computers in Biology and Medicine 109 (2019); Czarnek et al., Journal of Neuro-Oncology 132
    (2017); and Zwanenburg et al., the Image Biomarker Standardisation Initiative, Radiology 295 (2020).

    Args:
        bounding_ellipsoid_volume_ratio: Volume of the lesion divided by that of the smallest ellipsoid around it, 0 to
            1. It does not change when axes are stretched, so it needs no slice distance. Source: Buda 2019.
        angular_standard_deviation: Standard deviation of the distance from centroid to outline, in each of ten equal
            angles, averaged over the angles. Distances are divided by their mean. 0 for a circle, higher for irregular
            outlines. Source: Buda 2019.
        margin_fluctuation: Standard deviation of the difference between the distances from centroid to outline and
            their moving average over a tenth of the perimeter. Distances are divided by their mean. Near 0 for a smooth
            outline: 0.006 for a disk of 35 pixels' radius, 0.03 for one of 3. Source: Buda 2019; the length of the
            average: Czarnek 2017.
        voxels: Number of voxels.
        slices: Number of slices with lesion.
        volume_ml: Volume in ml.
        largest_diameter_px: The largest distance between two points of the lesion in one slice, in pixels.
        largest_diameter_mm: The same in mm.
        sphericity: Surface of a sphere of the same volume divided by the lesion's surface, 0 to 1. Surface and volume
            are those of a triangle mesh, so a sphere of cubic voxels has about 0.92, and one of voxels of 1 x 1 x 5 mm
            about 0.83. Source: Zwanenburg 2020.
        surface_to_volume: Surface divided by volume, both of the mesh, in 1/mm. Source: Zwanenburg 2020.
        elongation: Second principal axis divided by the first, 0 to 1; 1 is not elongated. Source: Zwanenburg 2020,
            where voxels are points. They are boxes in this package, so one row of voxels is defined too.
        flatness: Third principal axis divided by the first, 0 to 1; 1 is not flat. Source: as for elongation.
    """

    bounding_ellipsoid_volume_ratio: float | None
    angular_standard_deviation: float | None
    margin_fluctuation: float | None
    voxels: int
    slices: int
    volume_ml: float | None = None
    largest_diameter_px: float | None = None
    largest_diameter_mm: float | None = None
    sphericity: float | None = None
    surface_to_volume: float | None = None
    elongation: float | None = None
    flatness: float | None = None


def shape_features(mask: NDArray[Any], spacing_mm: Sequence[float] | None = None) -> ShapeFeatures:
    """The shape of the lesion in a mask.

    Args:
        mask: (H, W, D), slices along the last axis; every value but 0 is lesion.
        spacing_mm: Distance between rows, columns and slices in mm; None if it is not known.

    Returns:
        The features. All but the counts and the volume are None for an empty mask. If several slices, or parts of a
        slice, are equally large, the features of their outlines are averaged.

    Raises:
        ValueError: The mask does not have three dimensions of whole numbers, or a distance is not above 0.

    Examples:
        >>> import numpy as np
        >>> import pipeline
        >>> z, y, x = np.mgrid[-24:25, -24:25, -24:25]
        >>> ball = x**2 + y**2 + z**2 <= 20**2
        >>> found = pipeline.shape_features(ball, (1, 1, 1))
        >>> print(f"{found.volume_ml:.1f} ml, ratio {found.bounding_ellipsoid_volume_ratio:.2f}")
        33.4 ml, ratio 0.89
    """
    from scipy.ndimage import find_objects

    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"mask of shape {mask.shape} (expected three dimensions: rows, columns, slices)")
    if not np.array_equal(mask, np.round(mask)):  # NaN equals nothing
        raise ValueError("mask with values that are not whole numbers (expected 0 and 1, not probabilities)")
    lesion = mask != 0
    if spacing_mm is not None and (len(spacing_mm) != 3 or not all(0 < part < np.inf for part in spacing_mm)):
        raise ValueError(f"spacing {tuple(spacing_mm)} (expected three distances above 0 mm)")
    voxels, slices = int(lesion.sum()), int(lesion.any(axis=(0, 1)).sum())
    if not voxels:
        return ShapeFeatures(None, None, None, 0, 0, volume_ml=None if spacing_mm is None else 0.0)
    lesion = lesion[find_objects(lesion.astype(np.uint8))[0]]
    areas = lesion.sum(axis=(0, 1))
    rows, columns = (1.0, 1.0) if spacing_mm is None else spacing_mm[:2]
    largest = np.moveaxis(lesion[..., areas == areas.max()], 2, 0)
    radial = [radial_distances(points) for plane in largest for points in outlines(plane, (rows, columns))]
    found = ShapeFeatures(
        bounding_ellipsoid_volume_ratio=voxels / bounding_ellipsoid_volume(_corners(lesion)),
        angular_standard_deviation=float(np.mean([angular_standard_deviation(*one) for one in radial])),
        margin_fluctuation=float(np.mean([margin_fluctuation(distances) for distances, _ in radial])),
        voxels=voxels,
        slices=slices,
        largest_diameter_px=largest_diameter(lesion),
    )
    if spacing_mm is None:
        return found
    return ShapeFeatures(**{**vars(found), **_in_mm(lesion, tuple(spacing_mm))})


def outlines(lesion: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)) -> list[Points]:
    """The outer boundary of the largest part of a lesion in one slice, or of each part that is as large.

    Args:
        lesion: (H, W), True inside; not empty. Parts that touch at a corner count as one.
        spacing: Distance between rows and between columns.

    Returns:
        For each part (N, 2), row and column of points at equal distances, in order, in the unit of the spacing.
    """
    from skimage.measure import label

    parts = label(lesion, connectivity=2)
    sizes = np.bincount(parts[parts > 0])
    return [_outline(parts == part, spacing) for part in np.flatnonzero(sizes == sizes.max())]


def _outline(part: NDArray[np.bool_], spacing: tuple[float, float]) -> Points:
    from skimage.measure import find_contours

    curves = find_contours(np.pad(part, 1).astype(float), 0.5, fully_connected="high")
    curve = max(curves, key=lambda points: abs(_area(points))) * spacing
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    places = np.linspace(0, length[-1], max(8, round(length[-1] / (STEP * min(spacing)))), endpoint=False)
    return np.stack([np.interp(places, length, axis) for axis in curve.T], axis=1)


def _area(points: Points) -> float:
    """Area inside a closed curve, with the sign of its direction."""
    (down, right), (below, beside) = points[:-1].T, points[1:].T
    return float((down * beside - below * right).sum() / 2)


def radial_distances(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance and angle of an outline's points from the centroid of the area inside. The mean distance is 1.

    Args:
        points: (N, 2), in order, at equal distances along the outline.
    """
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    centroid = ((points + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    down, right = (points - centroid).T
    distances = np.hypot(down, right)
    return distances / distances.mean(), np.arctan2(down, right)


def angular_standard_deviation(distances: NDArray[np.float64], angles: NDArray[np.float64]) -> float:
    """The mean, over ``BINS`` equal angles, of the standard deviation of the distances. Source: Buda 2019.

    Where the paper's first angle starts is not known here. This is the mean over starts one degree apart, so that the
    result does not change when the lesion is turned. An angle without points does not count. That happens only where
    the centroid lies outside of the lesion.

    Args:
        distances: (N,), from centroid to outline, with a mean of 1.
        angles: (N,), in radians from -pi to pi.
    """
    starts = np.deg2rad(np.arange(0, 360 / BINS))
    deviations = []
    for start in starts:
        sector = ((angles - start) % (2 * np.pi) / (2 * np.pi) * BINS).astype(int) % BINS
        counts, sums, squares = (np.bincount(sector, part, BINS) for part in (None, distances, distances**2))
        means = sums[counts > 0] / counts[counts > 0]
        variances = squares[counts > 0] / counts[counts > 0] - means**2
        deviations.append(np.sqrt(np.maximum(variances, 0)).mean())
    return float(np.mean(deviations))


def margin_fluctuation(distances: NDArray[np.float64]) -> float:
    """The standard deviation of the distances minus their moving average.

    Source: Buda 2019; the length of the average: Czarnek 2017. Equal steps along the outline are a choice of this
    package.

    Args:
        distances: (N,), from centroid to outline, in order, at equal steps along the outline, with a mean of 1.
    """
    from scipy.ndimage import uniform_filter1d

    width = max(1, round(SMOOTHED * len(distances)))
    return float((distances - uniform_filter1d(distances, width, mode="wrap")).std())


def bounding_ellipsoid_volume(points: Points) -> float:
    """The volume of the smallest ellipsoid that holds all points.

    Source: Todd and Yildirim, Discrete Applied Mathematics 155 (2007), Khachiyan's algorithm with away steps.

    Args:
        points: (N, 3), not all in one plane.
    """
    from math import gamma

    from scipy.spatial import ConvexHull

    hull = points[ConvexHull(points).vertices]
    hull = hull - hull.mean(axis=0)
    count, dimensions = hull.shape
    lifted = np.column_stack([hull, np.ones(count)])
    weights = np.full(count, 1 / count)
    while True:
        inverse = np.linalg.inv(lifted.T * weights @ lifted)
        reach = np.einsum("ij,jk,ik->i", lifted, inverse, lifted)
        far, near = int(reach.argmax()), int(np.where(weights > 0, reach, np.inf).argmin())
        above, below = reach[far] / (dimensions + 1) - 1, 1 - reach[near] / (dimensions + 1)
        if above <= PRECISION / dimensions:
            break
        chosen = far if above >= below else near
        step = (reach[chosen] - dimensions - 1) / ((dimensions + 1) * (reach[chosen] - 1))
        if chosen == near:
            step = max(step, -weights[near] / (1 - weights[near]))
        weights *= 1 - step
        weights[chosen] = max(0.0, weights[chosen] + step)
    center = weights @ hull
    shape = (hull.T * weights @ hull - np.outer(center, center)) * dimensions * (1 + above)
    ball = np.pi ** (dimensions / 2) / gamma(dimensions / 2 + 1)
    return float(ball * np.sqrt(np.linalg.det(shape)))


def _corners(lesion: NDArray[np.bool_]) -> Points:
    """The corners of the outer voxels, (N, 3). So even one voxel spans a volume."""
    from scipy.ndimage import binary_erosion

    outer = np.argwhere(lesion & ~binary_erosion(lesion)).astype(float)
    cube = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), axis=-1).reshape(-1, 3)
    return np.unique((outer[:, None] + cube).reshape(-1, 3), axis=0)


def largest_diameter(lesion: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """The largest distance between two points of the lesion in one slice, in the unit of the spacing.

    Args:
        lesion: (H, W, D), True inside; not empty.
        spacing: Distance between rows and between columns.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    square = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 2), axis=-1).reshape(-1, 2)
    largest = 0.0
    for plane in np.moveaxis(lesion, 2, 0):
        if plane.any():
            corners = np.unique((np.argwhere(plane)[:, None] + square).reshape(-1, 2), axis=0) * spacing
            largest = max(largest, float(pdist(corners[ConvexHull(corners).vertices]).max()))
    return largest


def _in_mm(lesion: NDArray[np.bool_], spacing: tuple[float, ...]) -> dict[str, float | None]:
    """The features that need the distance between rows, columns and slices."""
    from skimage.measure import marching_cubes, mesh_surface_area

    corners, triangles, *_ = marching_cubes(np.pad(lesion, 1).astype(float), 0.5, spacing=spacing)
    surface = float(mesh_surface_area(corners, triangles))
    one, two, three = np.moveaxis(corners[triangles].astype(float), 1, 0)
    volume = abs(float((one * np.cross(two, three)).sum())) / 6
    places = np.argwhere(lesion) * spacing
    # A voxel is a box, not a point: its own variance keeps one voxel, one row and one slice defined.
    spread = np.cov(places.T, bias=True) + np.diag(np.square(spacing)) / 12
    least, middle, most = np.sqrt(np.linalg.eigvalsh(spread))
    return {
        "volume_ml": float(lesion.sum() * np.prod(spacing)) / 1000,
        "largest_diameter_mm": largest_diameter(lesion, (spacing[0], spacing[1])),
        "sphericity": float(np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface),
        "surface_to_volume": surface / volume,
        "elongation": float(middle / most),
        "flatness": float(least / most),
    }
