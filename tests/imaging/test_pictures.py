"""A TIFF slice is decoded to its exact values. All other content is refused, and the message names it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.imaging.pictures import decode_slice


def tiff(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", **options)
    return buffer.getvalue()


RGB = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
MASK = np.eye(6, 5, dtype=np.uint8) * 255


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_image_and_mask_decode_exactly(compression):
    np.testing.assert_array_equal(decode_slice(tiff(RGB, compression=compression), "image"), RGB)
    np.testing.assert_array_equal(decode_slice(tiff(MASK, compression=compression), "mask"), MASK)


def test_big_tiff_and_one_bit_masks_decode():
    np.testing.assert_array_equal(decode_slice(tiff(RGB, big_tiff=True), "image"), RGB)
    np.testing.assert_array_equal(decode_slice(tiff(MASK > 0), "mask"), MASK // 255)


@pytest.mark.parametrize("cut", [5, 9, 30, 120, 170])
def test_truncation_anywhere_is_one_clear_message(cut):
    with pytest.raises(PipelineError, match="truncated"):
        decode_slice(tiff(RGB)[:cut], "image")


def test_flipped_header_bytes_never_escape_as_another_error():
    whole = tiff(RGB)
    rng = np.random.default_rng(0)
    for _ in range(400):
        data = bytearray(whole)
        for position in rng.integers(0, 140, 3):
            data[position] = rng.integers(256)
        try:
            pixels = decode_slice(bytes(data), "image")
        except PipelineError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"\x89PNG\r\n", "PNG"), (b"\xff\xd8\xff\xe0", "JPEG"), (b"hello", "hell"), (b"\n<HTML>", "HTML")],
)
def test_other_formats_are_named(data, found):
    with pytest.raises(PipelineError, match=found):
        decode_slice(data, "image")


def test_a_palette_image_is_refused():
    palette = io.BytesIO()
    Image.fromarray(RGB).quantize(4).save(palette, "TIFF")
    with pytest.raises(PipelineError, match="pixel mode P"):
        decode_slice(palette.getvalue(), "image")
    with pytest.raises(PipelineError, match="pixel mode P"):
        decode_slice(palette.getvalue(), "mask")


def saved(pixels, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["TIFF", "PNG"])
def test_color_and_gray_slices(name):
    """Gray is FLAIR, which takes the place of the other sequences."""
    assert np.array_equal(decode_slice(saved(RGB, name), "image"), RGB)
    gray = RGB[..., 1]
    assert np.array_equal(decode_slice(saved(gray, name), "image"), np.stack([gray] * 3, axis=-1))
    assert np.array_equal(decode_slice(saved(gray, name), "mask"), gray)


def test_jpeg_holds_images_but_no_masks():
    flat = np.full((32, 32, 3), 120, np.uint8)
    assert np.abs(decode_slice(saved(flat, "JPEG"), "image").astype(int) - 120).max() <= 2
    with pytest.raises(PipelineError, match="a mask as JPEG"):
        decode_slice(saved(flat[..., 0], "JPEG"), "mask")


def test_stacks_are_refused_however_they_are_packed():
    two = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    packed = {}
    for name in ("TIFF", "PNG", "MPO"):
        buffer = io.BytesIO()
        two[0].save(buffer, name, save_all=True, append_images=two[1:])
        packed[name] = buffer.getvalue()
    packed["ImageJ"] = saved(RGB, "TIFF", description="ImageJ=1.53\nimages=30\nslices=30\n")
    for data in packed.values():
        with pytest.raises(PipelineError, match=r"several p.*one slice per file"):
            decode_slice(data, "image")
    assert decode_slice(saved(RGB, "TIFF", description="ImageJ=1.53\nimages=1\n"), "image").shape == RGB.shape


@pytest.mark.parametrize(("pixels", "message"), [("deep", "16-bit unsigned"), ("alpha", "pixel mode RGBA")])
def test_other_pngs_are_refused(pixels: str, message: str):
    arrays = {"deep": np.zeros((8, 8), np.uint16), "alpha": np.zeros((8, 8, 4), np.uint8)}
    with pytest.raises(PipelineError, match=message):
        decode_slice(saved(arrays[pixels], "PNG"), "image")


def test_a_png_of_16_bit_colors_is_refused():
    """Pillow reads it, cut to the high bytes, but cannot write it."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(13)), b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts.items()
    )
    with pytest.raises(PipelineError, match="16-bit unsigned pixels"):
        decode_slice(data, "image")
