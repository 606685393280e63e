"""Shape features of known shapes have the values of geometry, and do not change where they must not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad

from pipeline.features.shape import (
    BINS,
    ShapeFeatures,
    angular_standard_deviation,
    bounding_ellipsoid_volume,
    largest_diameter,
    margin_fluctuation,
    outlines,
    radial_distances,
    shape_features,
)

COUNTS = ("voxels", "slices")
OF_THE_PAPER = ("bounding_ellipsoid_volume_ratio", "angular_standard_deviation", "margin_fluctuation")


def ellipsoid(*half: float, size: int = 81) -> NDArray[np.bool_]:
    """A mask of an ellipsoid around the middle, with half axes along rows, columns and slices."""
    axes = np.meshgrid(*[np.arange(size) - size // 2] * 3, indexing="ij")
    return np.asarray(sum((axis / length) ** 2 for axis, length in zip(axes, half, strict=True)) <= 1)


def star(radius: Any, points: int = 20_000) -> NDArray[np.float64]:
    """The outline of a shape by its radius at each angle, with points at equal distances."""
    angles = np.linspace(0, 2 * np.pi, 8 * points + 1)
    curve = np.stack([radius(angles) * np.sin(angles), radius(angles) * np.cos(angles)], axis=1)
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    places = np.linspace(0, length[-1], points, endpoint=False)
    return np.stack([np.interp(places, length, axis) for axis in curve.T], axis=1)


def values(found: ShapeFeatures) -> dict[str, float]:
    return {name: value for name, value in vars(found).items() if value is not None}


def test_a_ball_is_round() -> None:
    found = shape_features(ellipsoid(35, 35, 35), (1, 1, 1))
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 35**3 / 1000, rel=0.01)
    assert found.bounding_ellipsoid_volume_ratio == pytest.approx(1, abs=0.08)
    assert found.angular_standard_deviation == pytest.approx(0, abs=0.01)
    assert found.margin_fluctuation == pytest.approx(0, abs=0.01)
    assert found.largest_diameter_mm == found.largest_diameter_px == pytest.approx(71, abs=1)
    assert found.sphericity == pytest.approx(0.92, abs=0.02)  # a mesh of voxels has steps
    assert found.surface_to_volume == pytest.approx(3 / 35, rel=0.1)
    assert (found.elongation, found.flatness) == pytest.approx((1, 1), abs=0.001)


def test_an_ellipsoid_has_its_axes() -> None:
    found = shape_features(ellipsoid(30, 20, 10), (1, 1, 1))
    assert found.elongation == pytest.approx(20 / 30, abs=0.01)
    assert found.flatness == pytest.approx(10 / 30, abs=0.01)
    assert found.bounding_ellipsoid_volume_ratio == pytest.approx(1, abs=0.15)
    assert found.largest_diameter_px == pytest.approx(61, abs=1)
    # The same lesion with slices 2 mm apart is the ellipsoid of half axes 30, 20 and 20 mm.
    thick = shape_features(ellipsoid(30, 20, 10), (1, 1, 2))
    assert thick.flatness == pytest.approx(20 / 30, abs=0.01)
    assert thick.bounding_ellipsoid_volume_ratio == found.bounding_ellipsoid_volume_ratio


def test_a_cube_fills_the_known_share_of_its_ellipsoid() -> None:
    cube = np.zeros((30, 30, 30), bool)
    cube[5:25, 5:25, 5:25] = True
    found = shape_features(cube, (1, 1, 1))
    assert found.bounding_ellipsoid_volume_ratio == pytest.approx(2 / (np.sqrt(3) * np.pi), rel=1e-3)
    assert found.largest_diameter_px == pytest.approx(20 * np.sqrt(2))
    assert found.sphericity == pytest.approx((np.pi / 6) ** (1 / 3), abs=0.03)  # the mesh cuts edges and corners


@pytest.mark.parametrize("half", [(1.0, 1.0, 1.0), (5.0, 2.0, 0.5)])
def test_the_bounding_ellipsoid_is_the_smallest(half: tuple[float, float, float]) -> None:
    """Points on an ellipsoid, in any direction, have that ellipsoid; those inside change nothing."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, 3))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * half
    turned = points @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + (9, -4, 2)
    expected = 4 / 3 * np.pi * np.prod(half)
    assert bounding_ellipsoid_volume(turned) == pytest.approx(expected, rel=5e-3)
    inside = np.concatenate([turned, (turned - turned.mean(0)) / 2 + turned.mean(0)])
    assert bounding_ellipsoid_volume(inside) == pytest.approx(bounding_ellipsoid_volume(turned), rel=2e-4)


def test_points_that_lie_close_together_do_not_pull_the_bounding_ellipsoid() -> None:
    """Six points on the axes determine a ball. Thousands of points on one side of it change nothing."""
    rng = np.random.default_rng(0)
    cap = rng.normal((0, 0, 4), 1, (3000, 3))
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    points = np.concatenate([axes, cap / np.linalg.norm(cap, axis=1, keepdims=True)])
    assert bounding_ellipsoid_volume(points) == pytest.approx(4 / 3 * np.pi, rel=2e-4)


def test_the_deviation_of_an_ellipse_is_that_of_integrals() -> None:
    """Distance and angle of an ellipse's points are integrated along the outline, sector by sector."""
    long, short = 3.0, 1.0

    def speed(t: float) -> float:
        return float(np.hypot(long * np.sin(t), short * np.cos(t)))

    def distance(t: float) -> float:
        return float(np.hypot(long * np.cos(t), short * np.sin(t)))

    def mean(of: Any, start: float, end: float) -> float:
        return quad(lambda t: of(t) * speed(t), start, end)[0] / quad(speed, start, end)[0]

    whole = mean(distance, 0, 2 * np.pi)
    expected = []
    for start in range(0, 36, 4):
        # The angle of a point whose polar angle is a: tan(t) = tan(a) * long / short.
        polar = np.deg2rad(np.linspace(start, start + 360, BINS + 1))
        edges = np.unwrap([np.arctan2(np.sin(a) * long, np.cos(a) * short) for a in polar])
        expected += [
            np.sqrt(max(0.0, mean(lambda t: distance(t) ** 2, *ends) - mean(distance, *ends) ** 2)) / whole
            for ends in itertools.pairwise(edges)
        ]
    points = star(lambda a: long * short / np.hypot(short * np.cos(a), long * np.sin(a)))
    assert angular_standard_deviation(*radial_distances(points)) == pytest.approx(np.mean(expected), rel=2e-3)


@pytest.mark.parametrize(("waves", "height"), [(8, 0.02), (30, 0.02), (60, 0.01)])
def test_the_fluctuation_of_a_wave_is_what_the_average_takes_away(waves: int, height: float) -> None:
    """A moving average over a tenth of a wavy circle leaves sin(x)/x of the wave, for waves that are low."""
    distances, _ = radial_distances(star(lambda angle: 1 + height * np.cos(waves * angle), points=40_000))
    left = np.sinc(waves * 0.1)
    assert margin_fluctuation(distances) == pytest.approx(height / np.sqrt(2) * abs(1 - left), rel=0.05)


def test_the_fluctuation_does_not_depend_on_where_the_outline_starts() -> None:
    distances, _ = radial_distances(star(lambda angle: 1 + 0.2 * np.cos(angle + 1) + 0.05 * np.cos(9 * angle)))
    found = [margin_fluctuation(np.roll(distances, shift)) for shift in (0, 1234, 10_000)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)


def test_a_rough_outline_fluctuates_more_and_a_smooth_one_does_not() -> None:
    rows, columns = np.mgrid[-40:41, -40:41]
    angle, distance = np.arctan2(rows, columns), np.hypot(rows, columns)
    smooth, rough = (distance <= 25 * (1 + height * np.cos(25 * angle)) for height in (0, 0.15))
    fluctuation = [shape_features(np.stack([plane] * 3, axis=2)).margin_fluctuation for plane in (smooth, rough)]
    assert fluctuation[1] > 4 * fluctuation[0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_features_stay_where_a_lesion_is_moved_turned_and_enlarged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(24) - 12] * 2, np.arange(8) - 4, indexing="ij")
    half = [*rng.uniform(4, 9, 2).tolist(), rng.uniform(2, 4)]
    bump = 1 + 0.3 * np.cos(rng.integers(2, 6) * np.arctan2(axes[0], axes[1]))
    lesion = sum((axis / length) ** 2 for axis, length in zip(axes, half, strict=True)) <= bump
    found = values(shape_features(lesion, (1, 1, 3)))
    moved = np.pad(lesion, ((3, 9), (5, 1), (2, 4)))
    assert values(shape_features(moved, (1, 1, 3))) == pytest.approx(found, rel=1e-3, abs=1e-9)
    for turned in (np.rot90(lesion, 1), np.rot90(lesion, 2), lesion[::-1], lesion[:, :, ::-1]):
        # The outline starts at another point, which moves points along it by less than half a pixel.
        assert values(shape_features(turned, (1, 1, 3))) == pytest.approx(found, rel=0.03, abs=0.003)
    enlarged = values(shape_features(lesion, (2, 2, 6)))
    for name in (*OF_THE_PAPER, "sphericity", "elongation", "flatness"):
        assert enlarged[name] == pytest.approx(found[name], rel=1e-6, abs=1e-9)
    assert enlarged["volume_ml"] == pytest.approx(8 * found["volume_ml"])
    assert enlarged["largest_diameter_mm"] == pytest.approx(2 * found["largest_diameter_mm"])


def test_slices_and_parts_of_one_size_are_averaged_so_that_none_is_first() -> None:
    square, bar = np.zeros((2, 44, 44), bool)
    square[4:16, 4:16] = True
    bar[30:36, 4:28] = True
    one, other = (shape_features(plane[..., None]) for plane in (square, bar))
    assert one.angular_standard_deviation != pytest.approx(other.angular_standard_deviation, rel=0.5)
    slices = np.stack([square, bar], axis=2)
    for lesion in (slices, slices[..., ::-1], (square | bar)[..., None], (square | bar)[::-1, :, None]):
        found = shape_features(lesion)
        for name in ("angular_standard_deviation", "margin_fluctuation"):
            mean = (getattr(one, name) + getattr(other, name)) / 2
            assert getattr(found, name) == pytest.approx(mean, rel=0.03)


def test_more_pixels_of_the_same_lesion_change_little() -> None:
    lesion = ellipsoid(10, 8, 5, size=25)
    found, finer = (values(shape_features(one)) for one in (lesion, np.kron(lesion, np.ones((3, 3, 3)))))
    assert finer["bounding_ellipsoid_volume_ratio"] == pytest.approx(found["bounding_ellipsoid_volume_ratio"])
    assert finer["angular_standard_deviation"] == pytest.approx(found["angular_standard_deviation"], rel=0.2)
    # Pixels make an outline rough. The same lesion with more of them has a smoother one.
    sampled = ellipsoid(40, 32, 20, size=90)
    assert shape_features(sampled).margin_fluctuation < 0.7 * found["margin_fluctuation"]


def test_what_needs_a_voxel_size_is_empty_without_one() -> None:
    lesion = ellipsoid(10, 8, 5, size=25)
    without, known = shape_features(lesion), shape_features(lesion, (1, 1, 4))
    for name in (*OF_THE_PAPER, *COUNTS, "largest_diameter_px"):
        assert getattr(without, name) == getattr(known, name)
    for name in set(vars(known)) - {*OF_THE_PAPER, *COUNTS, "largest_diameter_px"}:
        assert getattr(without, name) is None
        assert getattr(known, name) is not None


def test_an_empty_mask_has_counts_and_no_volume() -> None:
    assert values(shape_features(np.zeros((4, 4, 4)), (1, 1, 1))) == {"voxels": 0, "slices": 0, "volume_ml": 0.0}
    assert values(shape_features(np.zeros((4, 4, 4)))) == {"voxels": 0, "slices": 0}


@pytest.mark.parametrize(
    "place",
    [
        (slice(3, 4), slice(3, 4), slice(2, 3)),
        (slice(0, 1), slice(0, 1), slice(0, 1)),
        (slice(1, 7), slice(4, 5), slice(2, 3)),
        (slice(1, 7), slice(2, 6), slice(2, 3)),
        (slice(3, 4), slice(3, 4), slice(0, 6)),
        (slice(0, 8), slice(0, 8), slice(0, 6)),
    ],
    ids=["a voxel", "a voxel in the corner", "a row", "a slice", "a column of slices", "all"],
)
def test_the_smallest_lesions_have_all_features(place: tuple[slice, ...]) -> None:
    lesion = np.zeros((8, 8, 6), np.uint8)
    lesion[place] = 1
    found = values(shape_features(lesion, (1, 1, 5)))
    assert set(found) == set(vars(ShapeFeatures(None, None, None, 0, 0)))
    assert all(np.isfinite(value) and value >= 0 for value in found.values())
    for name in ("bounding_ellipsoid_volume_ratio", "sphericity", "elongation", "flatness"):
        assert 0 < found[name] <= 1
    padded = values(shape_features(np.pad(lesion, 2), (1, 1, 5)))
    assert padded == pytest.approx(found)  # the edge of the volume cuts nothing off


def test_a_row_of_voxels_is_as_long_as_it_is() -> None:
    row = np.zeros((9, 3, 3))
    row[1:7, 1, 1] = 1
    found = shape_features(row, (1, 1, 1))
    assert (found.elongation, found.flatness) == pytest.approx((1 / 6, 1 / 6))
    assert found.largest_diameter_px == pytest.approx(np.hypot(6, 1))


def test_parts_that_touch_at_a_corner_are_one() -> None:
    plane = np.zeros((20, 20), bool)
    plane[2:8, 2:8] = plane[8:13, 8:13] = True
    assert np.ptp(outlines(plane)[0], axis=0) == pytest.approx([11, 11], abs=0.6)


def test_the_outline_is_that_of_the_largest_part_without_its_holes() -> None:
    plane = np.zeros((40, 40), bool)
    plane[5:25, 5:25] = True
    plane[10:15, 10:15] = False
    plane[30:34, 30:34] = True
    points = outlines(plane)[0] - 1  # padded by one
    assert points.min() >= 4.4
    assert points.max() <= 24.6
    ring = np.hypot(*(points - 14.5).T)
    assert ring.min() > 9
    stretched = outlines(plane, (2.0, 1.0))[0]
    assert np.ptp(stretched[:, 0]) == pytest.approx(40, abs=0.6)
    assert np.ptp(stretched[:, 1]) == pytest.approx(20, abs=0.6)


def test_the_largest_diameter_is_that_of_one_slice() -> None:
    lesion = np.zeros((20, 20, 3), bool)
    lesion[2, 2:12, 0] = True
    lesion[5, 5, 1] = lesion[9, 8, 1] = True
    assert largest_diameter(lesion) == pytest.approx(np.hypot(10, 1))
    assert largest_diameter(lesion, (4.0, 1.0)) == pytest.approx(np.hypot(5 * 4, 4))


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="expected three dimensions"):
        shape_features(np.ones((4, 4)))
    for value in (0.4, np.nan):
        with pytest.raises(ValueError, match="not whole numbers"):
            shape_features(np.full((4, 4, 4), value))
    assert shape_features(np.ones((4, 4, 4)), np.array([1, 1, 5])).volume_ml == pytest.approx(0.32)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, float("nan")), (1, 1, float("inf"))):
        with pytest.raises(ValueError, match="expected three distances above 0 mm"):
            shape_features(np.ones((4, 4, 4)), spacing)
