"""Decode one slice from TIFF, PNG or JPEG. All other content is refused with a message that says what was found."""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown

MAX_SLICE_SIDE_PX = 4096
"""Largest side of a slice. Published slices have 256 pixels. Larger ones are refused before memory is allocated."""
_SUB_PAGES, _DESCRIPTION = 330, 270
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIPS, _SAMPLES, _STRIP_BYTES, _FORMAT = 256, 257, 258, 259, 273, 277, 279, 339
_UNSIGNED, _FLOAT, _UNCOMPRESSED = 1, 3, 1
_PNG_BITS = 24
"""Place of the bits per channel in a PNG file."""
_DECODER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
"""Errors that Pillow raises for damaged files. None of them may reach the user as a traceback."""
Pixels = NDArray[np.uint8]


def decode_slice(data: bytes, kind: Literal["image", "mask"]) -> Pixels:
    """The pixels of one TIFF, PNG or JPEG file. The header is checked before the file is decoded.

    Args:
        data: The bytes of the file.
        kind: Whether the file is an image or a mask.

    Returns:
        For an image, (H, W, 3) uint8, where gray is repeated in all three channels. For a mask, (H, W) uint8 with the
        values as stored; 1-bit masks give 0 and 1.

    Raises:
        PipelineError: The file is damaged, is not a picture, or has a size or pixel type that is refused.
    """
    name = _format_of(data)
    if name == "PNG" and data[_PNG_BITS : _PNG_BITS + 1] == b"\x10":  # Pillow reads the high byte of colors
        raise PipelineError("16-bit unsigned pixels (expected 8-bit unsigned). Convert with a stated intensity window.")
    if name == "JPEG" and kind == "mask":
        raise PipelineError("a mask as JPEG, which changes values (expected TIFF or PNG). Export the mask again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "TIFF":
                _check_header(data, _first_page(data), kind)
            with Image.open(io.BytesIO(data), formats=[name]) as image:
                _check_picture(image, kind)
                image.load()
                pixels = np.asarray(image).astype(np.uint8)
    except _DECODER_ERRORS as error:
        raise PipelineError(
            f"damaged or truncated {name} of {len(data)} bytes ({shown(error)}). Restore the file from its source."
        ) from error
    return np.stack([pixels] * 3, axis=-1) if kind == "image" and pixels.ndim == 2 else pixels


def _format_of(data: bytes) -> str:
    """The format by the first bytes: TIFF, PNG or JPEG. All others are refused."""
    if not data:
        raise PipelineError("0 bytes (expected a TIFF, PNG or JPEG). Restore the file from its source.")
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data.startswith(b"\x89PNG"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = f"not a picture: the file starts with {data[:4]!r}"
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text:
        found = "an HTML page with the name of a picture, perhaps a login page instead of the download"
    raise PipelineError(f"{found} (expected a TIFF, PNG or JPEG). Download the file again.")


def _first_page(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of the first page. Their ``next`` is 0 if no page follows. No pixel is read."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
    stream = io.BytesIO(data)
    if not 8 <= tags.next < len(data):
        raise PipelineError(f"damaged or truncated TIFF of {len(data)} bytes. Restore the file from its source.")
    stream.seek(tags.next)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        tags.load(stream)  # if the file ends too early, Pillow only warns and returns the tags so far
    if complaints or _WIDTH not in tags or _HEIGHT not in tags:
        raise PipelineError(
            f"damaged or truncated TIFF of {len(data)} bytes: tags missing. Restore the file from its source."
        )
    return tags


def _check_header(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, kind: str) -> None:
    """Refuse a wrong size, number of pages, pixel type or number of channels, by the header only."""
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if not (0 < width <= MAX_SLICE_SIDE_PX and 0 < height <= MAX_SLICE_SIDE_PX):
        raise PipelineError(
            f"the header claims {height} x {width} px (expected 1 to {MAX_SLICE_SIDE_PX} a side). Replace the file."
        )
    description = str(tags.get(_DESCRIPTION, ""))
    if tags.next or _SUB_PAGES in tags or re.search(r"^(images|slices|frames)=(?!1$)", description, re.MULTILINE):
        raise PipelineError("several pages (expected one slice per file). Split the file into one file per slice.")
    bits, samples = _sequence(tags.get(_BITS, 1)), int(tags.get(_SAMPLES, 1))
    formats = _sequence(tags.get(_FORMAT, _UNSIGNED))
    if _FLOAT in formats:
        odd = _not_finite(data, tags, bits[0])
        raise PipelineError(
            f"{bits[0]}-bit float pixels{odd} (expected 8-bit unsigned). Convert with a stated intensity window."
        )
    if set(formats) != {_UNSIGNED} or not (set(bits) == {8} or (kind == "mask" and set(bits) == {1})):
        raise PipelineError(
            f"{bits[0]}-bit {'unsigned' if set(formats) == {_UNSIGNED} else 'signed or complex'} pixels "
            "(expected 8-bit unsigned). Convert with a stated intensity window."
        )
    if samples not in ((1, 3) if kind == "image" else (1,)):
        names = {1: "grayscale or palette", 2: "grayscale + alpha", 3: "RGB", 4: "RGBA or CMYK"}
        wanted = "RGB: pre-contrast, FLAIR, post-contrast, or gray" if kind == "image" else "1 channel"
        raise PipelineError(
            f"{samples} channel(s), {names.get(samples, 'unknown')} (expected {wanted}). Replace the file."
        )


def _check_picture(image: Image.Image, kind: str) -> None:
    """Refuse several pictures in one file, too large sizes, palettes, alpha, YCbCr, Lab and more than 8 bits."""
    if getattr(image, "n_frames", 1) > 1:
        raise PipelineError("several pictures in one file (expected one slice per file). Split the file.")
    if max(image.size) > MAX_SLICE_SIDE_PX:
        raise PipelineError(
            f"the header claims {image.height} x {image.width} px (expected 1 to {MAX_SLICE_SIDE_PX} a side). "
            "Replace the file."
        )
    allowed = ("RGB", "L") if kind == "image" else ("L", "1")
    if image.mode not in allowed:
        raise PipelineError(f"pixel mode {image.mode} (expected 8-bit {' or '.join(allowed)}). Convert the file.")


def _sequence(value: Any) -> tuple[int, ...]:
    """A tag's value as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _not_finite(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, bits: int) -> str:
    """The text `` holding NaN`` if an uncompressed float page does, else empty. Pillow cannot read float RGB."""
    if tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED or bits not in (16, 32, 64):
        return ""
    order = "<" if data[:2] == b"II" else ">"
    strips = zip(_sequence(tags.get(_STRIPS, ())), _sequence(tags.get(_STRIP_BYTES, ())), strict=False)
    raw = b"".join(data[start : start + size - size % (bits // 8)] for start, size in strips)
    values = np.frombuffer(raw[: len(raw) - len(raw) % (bits // 8)], dtype=f"{order}f{bits // 8}")
    found = [name for name, hit in (("NaN", np.isnan(values).any()), ("Inf", np.isinf(values).any())) if hit]
    return " holding " + " and ".join(found) if found else ""
