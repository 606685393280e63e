"""Pictures show contours at the edges of masks, uncertainty where it is not 0, and GIFs keep every frame."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.pages.overlays import (
    GREEN,
    MAGENTA,
    RED,
    contour_frame,
    gif_bytes,
    heat_frame,
    picture_bytes,
    picture_size,
    slices_of_interest,
)


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((40, 32), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def test_contour_follows_the_edge_of_the_mask() -> None:
    gray = np.full((40, 32), 100, dtype=np.uint8)
    frame = contour_frame(gray, square(slice(10, 20), slice(8, 24)), None).astype(int)
    assert frame.shape == (80, 64, 3)
    reddish = frame[..., 0] - frame[..., 1] > 40
    rows, columns = np.nonzero(reddish)
    # The outline lies between mask and background: at screen pixels 19 to 20, 39 to 40, 15 to 16 and 47 to 48.
    assert (rows.min(), rows.max()) in {(19, 40), (18, 40), (19, 41), (18, 41)}
    assert (columns.min(), columns.max()) in {(15, 48), (14, 48), (15, 49), (14, 49)}
    assert not reddish[25:35, 22:42].any()  # the inside of the lesion is not changed
    assert (frame[25:35, 22:42] == 100).all()


def test_prediction_is_red_truth_green_both_yellow() -> None:
    gray = np.zeros((40, 32), dtype=np.uint8)
    one, other = square(slice(10, 20), slice(8, 24)), square(slice(24, 30), slice(8, 24))
    frame = contour_frame(gray, one, other)
    assert set(map(tuple, frame[18:22, 20:40].reshape(-1, 3)[:, 1:] <= RED[1])) == {(True, True)}
    assert frame[18:22, 30, 0].max() > 200  # red above
    assert frame[46:50, 30, 1].max() > 180  # green below
    assert frame[46:50, 30, 0].max() == 0
    both = contour_frame(gray, one, one)[18:22, 30].max(axis=0)
    assert both[0] > 200
    assert both[1] > 180
    assert GREEN[0] == 0


def test_a_mask_at_the_border_is_drawn() -> None:
    gray = np.zeros((40, 32), dtype=np.uint8)
    frame = contour_frame(gray, np.ones_like(gray), None)
    assert frame[0, 30, 0] > 60
    assert frame[40, 0, 0] > 60


def test_slices_of_interest_are_those_of_either_mask() -> None:
    volume = np.zeros((4, 4, 6), dtype=np.uint8)
    one, other = volume.copy(), volume.copy()
    one[1, 1, 2] = other[2, 2, 4] = 1
    assert slices_of_interest(one, other) == [2, 4]
    assert slices_of_interest(one, None) == [2]
    assert slices_of_interest(volume) == []


def test_heat_is_drawn_where_the_map_is_not_0() -> None:
    gray = np.full((40, 32), 90, dtype=np.uint8)
    values = np.zeros((40, 32), dtype=np.float32)
    values[10:20, 10:20] = 0.5
    frame = heat_frame(gray, values)
    assert (frame[:10] == 90).all()
    assert frame[30, 30, 0] > 200


def test_heat_is_drawn_in_magenta() -> None:
    frame = heat_frame(np.zeros((8, 8), dtype=np.uint8), np.full((8, 8), 0.5, dtype=np.float32))
    assert np.abs(frame[8, 8].astype(int) - 0.8 * np.array(MAGENTA)).max() <= 1


def test_png_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture_bytes(picture, "png")))), picture)


def test_gif_keeps_every_frame() -> None:
    frames = [np.full((8, 8, 3), 40 * n, dtype=np.uint8) for n in range(5)]
    gif = Image.open(io.BytesIO(gif_bytes(frames)))
    assert gif.n_frames == 5
    assert gif.info["loop"] == 0


def test_gif_keeps_the_colors_of_contours() -> None:
    gray = np.random.default_rng(0).integers(0, 160, (160, 160), dtype=np.uint8)
    mask = np.zeros_like(gray)
    mask[60:70, 60:76] = 1
    for prediction, truth in ((mask, None), (None, mask), (mask, mask)):
        frame = contour_frame(gray, prediction, truth)
        shown = np.asarray(Image.open(io.BytesIO(gif_bytes([frame, frame]))).convert("RGB")).astype(int)
        assert np.abs(shown - frame).max(axis=-1).mean() < 3
        assert np.abs(shown - frame).max() < 20


def test_a_mm_has_one_length_where_rows_and_columns_differ() -> None:
    gray = np.full((40, 32), 100, dtype=np.uint8)
    assert picture_size(gray) == picture_size(gray, (0.7, 0.7)) == (64, 80)
    assert picture_size(gray, (2.0, 1.0)) == (64, 160)
    assert picture_size(gray, (1.0, 2.5)) == (160, 80)
    frame = contour_frame(gray, square(slice(10, 20), slice(8, 24)), None, spacing=(2.0, 1.0)).astype(int)
    assert frame.shape == (160, 64, 3)
    rows, columns = np.nonzero(frame[..., 0] - frame[..., 1] > 40)
    assert (rows.min(), rows.max()) in {(38, 80), (39, 80), (38, 81), (39, 81)}
    assert (columns.min(), columns.max()) in {(15, 48), (14, 48), (15, 49), (14, 49)}
    assert heat_frame(gray, gray.astype(np.float32) / 255, (2.0, 1.0)).shape == (160, 64, 3)
