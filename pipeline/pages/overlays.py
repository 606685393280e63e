"""Turn arrays into pictures of slices, with contours of prediction and truth. No function touches a file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

RED, GREEN = (255, 40, 40), (0, 230, 60)
"""Colors of prediction and truth, as in the reference program. Where both coincide, their sum is yellow."""
ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)
"""Colors of prediction and truth for color-blind readers (Okabe and Ito 2008). Their sum is nearly white."""
MAGENTA = (255, 60, 220)
"""Color of the uncertainty."""
MAX_UNCERTAINTY = 0.5
"""Highest possible value of an uncertainty map, drawn in full color."""
SCALE = 2
"""Screen pixels for each pixel of a slice, along the side where its pixels are shorter."""
Spacing = tuple[float, float] | None
"""Distance between rows and between columns in mm; None if not known, and then they count as equal."""
_FINER = 4
"""Lines are drawn this many times larger, then averaged down, to smooth their edges."""
_WIDTH = 1.4
"""Width of a contour in screen pixels."""
FRAME_MS = 180
"""Time between the frames of a GIF in ms."""


def slices_of_interest(*masks: NDArray[Any] | None) -> list[int]:
    """Numbers of the slices, from 0, in which any mask has a voxel.

    Args:
        masks: Masks, each (H, W, D); None is ignored.
    """
    marked = [mask.any(axis=(0, 1)) for mask in masks if mask is not None]
    return [int(z) for z in np.flatnonzero(np.any(marked, axis=0))]


def contour_frame(
    background: Picture,
    prediction: NDArray[Any] | None,
    truth: NDArray[Any] | None,
    colors: tuple[Color, Color] = (RED, GREEN),
    *,
    caption: str = "",
    spacing: Spacing = None,
) -> Picture:
    """A picture of one slice with the contours of two masks: uint8, RGB, (2 H, 2 W, 3) for equal spacing.

    Args:
        background: The slice in gray, (H, W) uint8.
        prediction: The predicted mask, (H, W); None draws no contour.
        truth: The true mask, (H, W); None draws no contour.
        colors: The colors of prediction and truth.
        caption: Text for the upper left corner, ASCII.
        spacing: Distance between rows and between columns in mm. If they differ, the picture is stretched to keep
            proportions.
    """
    size = picture_size(background, spacing)
    gray = np.asarray(Image.fromarray(background).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    light = np.zeros((size[1], size[0], 3), dtype=np.float32)
    cover = np.zeros((size[1], size[0], 1), dtype=np.float32)
    for mask, color in zip((prediction, truth), colors, strict=True):
        if mask is not None and mask.any():
            share = _contour_share(mask, size)[..., None]
            light += share * np.array(color, dtype=np.float32)
            cover = np.maximum(cover, share)
    canvas = Image.fromarray(np.clip(gray[..., None] * (1 - cover) + light, 0, 255).astype(np.uint8))
    ImageDraw.Draw(canvas).text(
        (6, 4), caption, fill=(255, 255, 255), font=ImageFont.load_default(14), stroke_width=1, stroke_fill=0
    )
    return np.asarray(canvas)


def picture_size(background: NDArray[Any], spacing: Spacing = None) -> tuple[int, int]:
    """Width and height, in screen pixels, of the picture of a slice, (H, W), with this spacing in mm."""
    rows, columns = spacing or (1.0, 1.0)
    shorter = min(rows, columns)
    height, width = background.shape
    return round(width * SCALE * columns / shorter), round(height * SCALE * rows / shorter)


def _contour_share(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Share of each pixel that the mask's outline covers, 0 to 1, in a picture of this width and height."""
    canvas = Image.new("L", (size[0] * _FINER, size[1] * _FINER))
    across, down = canvas.width / mask.shape[1], canvas.height / mask.shape[0]
    draw = ImageDraw.Draw(canvas)
    for contour in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        points = [((x - 0.5) * across, (y - 0.5) * down) for y, x in contour]
        draw.line(points, fill=255, width=round(_WIDTH * _FINER), joint="curve")
    small = canvas.reduce(_FINER)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def heat_frame(background: Picture, uncertainty: NDArray[np.floating[Any]], spacing: Spacing = None) -> Picture:
    """A picture of one slice with its uncertainty in magenta, of the same size as by ``contour_frame``.

    Args:
        background: The slice in gray, (H, W) uint8.
        uncertainty: The uncertainty of the slice, (H, W), 0 to 0.5.
        spacing: Distance between rows and between columns in mm; None if not known.
    """
    size = picture_size(background, spacing)
    gray, heat = (
        np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
        for layer in (background.astype(np.float32), (uncertainty / MAX_UNCERTAINTY).astype(np.float32))
    )
    heat = np.clip(heat, 0, 1) * 0.8
    mixed = gray * (1 - heat) + heat * np.array(MAGENTA, dtype=np.float32)
    laid: Picture = mixed.clip(0, 255).astype(np.uint8)
    return laid


def picture_bytes(picture: NDArray[Any], kind: str, **options: Any) -> bytes:
    """The bytes of a picture's file.

    Args:
        picture: The picture, (H, W, 3) or (H, W), uint8 or bool.
        kind: The format, such as ``png``.
        options: Options of Pillow's ``save``.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def gif_bytes(frames: Iterable[Picture]) -> bytes:
    """The bytes of an endless GIF of at least one frame, each (H, W, 3) uint8, ``FRAME_MS`` apart."""
    # Pillow's default method uses most of the palette for grays, and leaves too little for the contours.
    first, *others = (Image.fromarray(frame).quantize(128, method=Image.Quantize.MAXCOVERAGE) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return buffer.getvalue()
