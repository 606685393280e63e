"""The viewer gets every slice of a patient, cropped to the head, with masks compressed without loss."""

from __future__ import annotations

import json

import numpy as np

from pipeline.pages.viewer import MARGIN, MAX_SIDE_PX, head_box, patient_view
from tests.pages.evaluations import slices_of


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with a head of 20 x 22 x 5 in air, its truth and a mask. First and second channel are equal."""
    image = np.zeros((40, 36, 5, 3), dtype=np.uint8)
    image[10:30, 8:30] = np.linspace(60, 200, 22).astype(np.uint8)[None, :, None, None]
    image[12:20, 10:20, :, 2] = 250
    truth = np.zeros(image.shape[:3], dtype=np.uint8)
    truth[14:18, 12:16, 1] = truth[14:20, 12:18, 3] = 1
    return image, truth, np.roll(truth, 2, axis=0)


def test_decoded_again_the_images_hold_the_volumes() -> None:
    image, truth, mask = volumes()
    uncertainty = (mask * 0.25).astype(np.float32)
    view = patient_view(image, truth, {"first": mask, "second": 0 * mask}, {"second": uncertainty})
    assert json.loads(json.dumps(view)) == view
    rows, columns = slice(10 - MARGIN, 30 + MARGIN), slice(8 - MARGIN, 30 + MARGIN)
    assert (view["height"], view["width"], view["depth"], view["columns"]) == (28, 30, 5, 3)
    assert np.array_equal(slices_of(view, view["truth"]) > 0, truth[rows, columns] > 0)
    assert np.array_equal(slices_of(view, view["masks"]["first"]) > 0, mask[rows, columns] > 0)
    assert not slices_of(view, view["masks"]["second"]).any()
    assert list(view["maps"]) == ["second"]
    heat = slices_of(view, view["maps"]["second"]).astype(float)  # half of the highest value, 0.5, is stored as 128
    assert np.abs(heat - 128 * mask[rows, columns]).mean() < 6
    assert view["channels"][0] == 1  # it repeats FLAIR and uses the same image
    for channel in (1, 2):
        seen = slices_of(view, view["channels"][channel]).astype(float)
        assert np.abs(seen - image[rows, columns, :, channel]).mean() < 6


def test_the_first_slice_shown_is_the_one_with_most_lesion() -> None:
    image, truth, mask = volumes()
    assert patient_view(image, truth, {"run": mask}, {})["start"] == 3
    found = 0 * mask
    found[15, 15, 4] = 1
    assert patient_view(image, 0 * truth, {"run": found}, {})["start"] == 4  # no lesion: most prediction
    assert patient_view(image, 0 * truth, {"run": 0 * mask}, {})["start"] == 2  # nothing at all: the middle
    assert patient_view(image, 0 * truth, {}, {})["start"] == 2


def test_the_box_holds_the_head_and_every_mask() -> None:
    image, truth, mask = volumes()
    assert head_box(image) == head_box(image, truth, mask) == (slice(6, 34), slice(4, 34))
    outside = 0 * mask
    outside[1, 35, 0] = 1
    assert head_box(image, truth, outside) == (slice(0, 34), slice(4, 36))
    bright = image.copy()
    bright[10:30, 8:30] //= 8
    bright[20, 14, 0] = 255  # a few voxels do not decide where the head is
    assert head_box(bright) == head_box(image)
    assert head_box(0 * image) == (slice(0, 40), slice(0, 36))  # no head: everything


def test_large_volumes_are_shown_coarser() -> None:
    side = MAX_SIDE_PX // 2 + 8
    image = np.full((side, 12, 3, 3), 100, dtype=np.uint8)
    truth = np.zeros(image.shape[:3], dtype=np.uint8)
    truth[100:200, 2:8, 1] = 1
    thin = 0 * truth
    thin[101, 3:7, 1] = 1
    view = patient_view(image, truth, {"run": thin}, {"run": (thin * 0.5).astype(np.float32)})
    assert (view["height"], view["width"], view["columns"], view["step"]) == (side // 2, 6, 2, 2)
    assert np.array_equal(slices_of(view, view["truth"]) > 0, truth[::2, ::2] > 0)
    assert np.argwhere(slices_of(view, view["masks"]["run"])).tolist() == [[50, 1, 1], [50, 2, 1], [50, 3, 1]]
    assert slices_of(view, view["maps"]["run"])[50, 2, 1] > 200
    assert patient_view(image[:100], truth[:100], {}, {})["step"] == 1


def test_a_view_without_truth_keeps_the_shape_of_voxels() -> None:
    image, truth, mask = volumes()
    view = patient_view(image, None, {"run": mask}, {}, (1.8, 0.9, 5.0))
    assert view["truth"] is None
    assert view["aspect"] == 2.0
    assert view["start"] == 3
    assert patient_view(image, truth, {}, {})["aspect"] == 1.0


def test_gray_values_are_spread_over_the_head() -> None:
    image, truth, _ = volumes()
    (low, high), _, third = patient_view(image, truth, {}, {})["windows"]
    assert 60 <= low < 70
    assert 190 < high <= 200
    assert third[1] == 250
    flat = patient_view(0 * image, truth, {}, {})["windows"][0]
    assert flat[0] < flat[1]
