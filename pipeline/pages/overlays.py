"""Arrays -> pictures of slices: contours of prediction and truth on FLAIR, frames for a GIF. Touches no file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

RED, GREEN = (255, 40, 40), (0, 230, 60)
"""Prediction and truth, as the reference program draws them; where both run together the sum, yellow."""
ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)
"""The same for readers who cannot tell red from green (Okabe and Ito 2008); together nearly white."""
MAGENTA = (255, 60, 220)
"""Uncertainty."""
SCALE = 2
"""Screen pixels a pixel of the slice."""
_FINER = 4
"""Lines are drawn so much finer and averaged down: anti-aliased."""
_WIDTH = 1.4
"""Of a contour, in screen pixels."""
FRAME_MS = 180


def slices_of_interest(*masks: NDArray[Any] | None) -> list[int]:
    """Slices in which any of the masks has a voxel, ascending.

    Args:
        masks: (H, W, D) of one shape, 0 and 1; None is passed over.
    """
    return sorted({int(z) for mask in masks if mask is not None for z in np.flatnonzero(mask.any(axis=(0, 1)))})


def contour_frame(
    background: Picture,
    prediction: NDArray[Any] | None,
    truth: NDArray[Any] | None,
    colours: tuple[Colour, Colour] = (RED, GREEN),
    caption: str = "",
) -> Picture:
    """One slice with the contours of two masks, at ``SCALE`` times its size.

    Args:
        background: (H, W) uint8, one channel of the slice, as it is shown in grey.
        prediction: (H, W), 0 and 1, or None.
        truth: (H, W), 0 and 1, or None.
        colours: Colours of prediction and truth.
        caption: Text written into the upper left corner; ASCII.

    Returns:
        (2 H, 2 W, 3) uint8, RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

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
    frame: Picture = np.clip(grey[..., None] * (1 - cover) + light, 0, 255).astype(np.uint8)
    if caption:
        canvas = Image.fromarray(frame)
        ImageDraw.Draw(canvas).text(
            (6, 4), caption, fill=(255, 255, 255), font=ImageFont.load_default(14), stroke_width=1, stroke_fill=0
        )
        frame = np.asarray(canvas)
    return frame


def _contour_share(mask: NDArray[Any]) -> NDArray[np.float32]:
    """Share of each screen pixel that the mask's outline covers, (2 H, 2 W), 0 to 1.

    Only the box of the mask is drawn; the rest has none.
    """
    from PIL import Image, ImageDraw
    from skimage import measure

    share = np.zeros((mask.shape[0] * SCALE, mask.shape[1] * SCALE), dtype=np.float32)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = max(rows[0] - 2, 0), max(columns[0] - 2, 0)
    part = mask[top : rows[-1] + 3, left : columns[-1] + 3]
    fine = SCALE * _FINER
    canvas = Image.new("L", (part.shape[1] * fine, part.shape[0] * fine))
    draw = ImageDraw.Draw(canvas)
    for contour in measure.find_contours(np.pad(part.astype(np.float32), 1), 0.5):
        points = [((x - 0.5) * fine, (y - 0.5) * fine) for y, x in contour]
        draw.line(points, fill=255, width=round(_WIDTH * _FINER), joint="curve")
    small = canvas.resize((part.shape[1] * SCALE, part.shape[0] * SCALE), Image.Resampling.BOX)
    drawn = np.asarray(small, dtype=np.float32) / 255
    share[top * SCALE : top * SCALE + drawn.shape[0], left * SCALE : left * SCALE + drawn.shape[1]] = drawn
    return share


def heat_frame(background: Picture, values: NDArray[np.floating[Any]], highest: float) -> Picture:
    """One slice with a map laid over it, at ``SCALE`` times its size; nothing where the map is 0.

    Args:
        background: (H, W) uint8.
        values: (H, W), 0 to ``highest``.
        highest: The value that is drawn in full.

    Returns:
        (2 H, 2 W, 3) uint8, RGB; magenta.
    """
    from PIL import Image

    size = (background.shape[1] * SCALE, background.shape[0] * SCALE)
    grey, heat = (
        np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
        for layer in (background.astype(np.float32), (values / highest).astype(np.float32))
    )
    heat = np.clip(heat, 0, 1) * 0.8
    mixed = grey * (1 - heat) + heat * np.array(MAGENTA, dtype=np.float32)
    laid: Picture = mixed.clip(0, 255).astype(np.uint8)
    return laid


def png_bytes(picture: Picture) -> bytes:
    """A PNG file of a picture, (H, W, 3) or (H, W) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def gif_bytes(frames: Iterable[Picture]) -> bytes:
    """An endless GIF file of frames, (H, W, 3) uint8 each, ``FRAME_MS`` apart; at least one frame."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette(_gif_palette())
    first, *others = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _gif_palette() -> list[int]:
    """256 colours: 128 greys, and each of the four colours laid over four greys in eight strengths.

    A palette of the frame's own would spend them all on greys.
    """
    greys = [[value, value, value] for value in np.linspace(0, 255, 128).round().astype(int)]
    hues = np.array([RED, GREEN, np.minimum(np.add(RED, GREEN), 255), MAGENTA])
    mixed = [
        (hue * share + grey * (1 - share)).round().astype(int).tolist()
        for hue in hues
        for grey in (0, 60, 120, 180)
        for share in np.linspace(0.2, 1, 8)
    ]
    return [int(value) for colour in greys + mixed for value in colour]


def side_by_side(pictures: Sequence[Picture], gap: int = 4) -> Picture:
    """Pictures of one height next to one another, (H, W, 3) uint8."""
    space = np.zeros((pictures[0].shape[0], gap, 3), dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, space)][:-1], axis=1)
