"""Arrays -> pictures of slices: contours of prediction and truth on FLAIR, frames for a GIF. Touches no file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

RED, GREEN = (255, 40, 40), (0, 230, 60)
"""Prediction and truth, as the reference program draws them; where both run together the sum, yellow."""
ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)
"""The same for readers who cannot tell red from green (Okabe and Ito 2008); together nearly white."""
MAGENTA = (255, 60, 220)
"""Uncertainty."""
MAX_UNCERTAINTY = 0.5
"""Highest value of an uncertainty map; drawn in full."""
SCALE = 2
"""Screen pixels for each pixel of the slice, along a side."""
_FINER = 4
"""Lines are drawn so much finer and averaged down: anti-aliased."""
_WIDTH = 1.4
"""Of a contour, in screen pixels."""
FRAME_MS = 180


def contour_frame(
    background: Picture,
    prediction: NDArray[Any] | None,
    truth: NDArray[Any] | None,
    colours: tuple[Colour, Colour] = (RED, GREEN),
    caption: str = "",
) -> Picture:
    """One grey slice, (H, W) uint8, with the contours of masks, (H, W), and an ASCII caption: (2 H, 2 W, 3) uint8."""
    height, width = background.shape
    size = (width * SCALE, height * SCALE)
    grey = np.asarray(Image.fromarray(background).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    light = np.zeros((size[1], size[0], 3), dtype=np.float32)
    cover = np.zeros((size[1], size[0], 1), dtype=np.float32)
    for mask, colour in zip((prediction, truth), colours, strict=True):
        if mask is not None and mask.any():
            share = _contour_share(mask)[..., None]
            light += share * np.array(colour, dtype=np.float32)
            cover = np.maximum(cover, share)
    canvas = Image.fromarray(np.clip(grey[..., None] * (1 - cover) + light, 0, 255).astype(np.uint8))
    ImageDraw.Draw(canvas).text(
        (6, 4), caption, fill=(255, 255, 255), font=ImageFont.load_default(14), stroke_width=1, stroke_fill=0
    )
    return np.asarray(canvas)


def _contour_share(mask: NDArray[Any]) -> NDArray[np.float32]:
    """Share of each screen pixel that the mask's outline covers, (2 H, 2 W), 0 to 1."""
    fine = SCALE * _FINER
    canvas = Image.new("L", (mask.shape[1] * fine, mask.shape[0] * fine))
    draw = ImageDraw.Draw(canvas)
    for contour in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        points = [((x - 0.5) * fine, (y - 0.5) * fine) for y, x in contour]
        draw.line(points, fill=255, width=round(_WIDTH * _FINER), joint="curve")
    return np.asarray(canvas.reduce(_FINER), dtype=np.float32) / np.float32(255)


def heat_frame(background: Picture, uncertainty: NDArray[np.floating[Any]]) -> Picture:
    """One grey slice, (H, W) uint8, with its uncertainty, (H, W), in magenta: (2 H, 2 W, 3) uint8, RGB."""
    size = (background.shape[1] * SCALE, background.shape[0] * SCALE)
    grey, heat = (
        np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
        for layer in (background.astype(np.float32), (uncertainty / MAX_UNCERTAINTY).astype(np.float32))
    )
    heat = np.clip(heat, 0, 1) * 0.8
    mixed = grey * (1 - heat) + heat * np.array(MAGENTA, dtype=np.float32)
    laid: Picture = mixed.clip(0, 255).astype(np.uint8)
    return laid


def picture_bytes(picture: NDArray[Any], kind: str, **options: Any) -> bytes:
    """A file of a picture, (H, W, 3) or (H, W), uint8 or bool; the options are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def gif_bytes(frames: Iterable[Picture]) -> bytes:
    """An endless GIF file of frames, (H, W, 3) uint8 each, ``FRAME_MS`` apart; at least one frame."""
    # Pillow's usual method spends the palette on greys and leaves too little for the contours.
    first, *others = (Image.fromarray(frame).quantize(128, method=Image.Quantize.MAXCOVERAGE) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return buffer.getvalue()
