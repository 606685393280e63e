"""A TIFF slice is decoded to its exact values; whatever else lies under the name is refused by what was found."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.imaging.tiff import decode_slice


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
    with pytest.raises(PipelineError, match="palette"):
        decode_slice(palette.getvalue(), "image")
    with pytest.raises(PipelineError, match="pixel mode P"):
        decode_slice(palette.getvalue(), "mask")
