"""TIFF slice -> array, arrays -> NIfTI volume and back. Every NIfTI file is written whole or not at all."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import write_durably
from pipeline.scripts.volumes import AFFINE, open_nifti, read_voxels, voxel_fault

MAX_SIDE_PX = 4096
"""The published slices have 256; a header that claims far more is refused before memory is taken for it."""

DESCRIPTION = b"spacing unknown; research only"

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIPS, _SAMPLES, _STRIP_BYTES, _FORMAT = 256, 257, 258, 259, 273, 277, 279, 339
_UNSIGNED, _FLOAT, _UNCOMPRESSED = 1, 3, 1
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
"""What Pillow raises for damaged files; none of it may reach the user as a traceback."""

Pixels = NDArray[np.uint8]


def decode_slice(data: bytes, kind: Literal["image", "mask"]) -> Pixels:
    """Decode the bytes of one TIFF file after its header has been checked.

    Args:
        data: content of the file.
        kind: what it must be: an 8-bit RGB image or a single-channel mask of 1 or 8 bits.

    Returns:
        (H, W, 3) uint8 for an image, (H, W) uint8 for a mask with values as stored (1-bit masks: 0 and 1).

    Raises:
        PipelineError: anything else, saying what was found.
    """
    _check_start(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = _first_page(data)
            _check_header(data, tags, kind)
            with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
                _check_mode(image.mode, kind)
                image.load()
                pixels = np.asarray(image).astype(np.uint8)
    except _DECODER_ERRORS as error:
        raise PipelineError(
            f"damaged or truncated TIFF of {len(data)} bytes ({shown(error)}). Restore the file from its source."
        ) from error
    return pixels


def _check_start(data: bytes) -> None:
    """Refuse what is no TIFF by its first bytes, and name what it is."""
    if not data:
        raise PipelineError("0 bytes (expected a TIFF). Restore the file from its source.")
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text:
        found = "an HTML page under the name of a TIFF, perhaps a login page in place of the download"
    elif data.startswith(b"\x89PNG"):
        found = "a PNG under the name of a TIFF"
    elif data.startswith(b"\xff\xd8\xff"):
        found = "a JPEG under the name of a TIFF"
    else:
        found = f"no TIFF: the file starts with {data[:4]!r}"
    raise PipelineError(f"{found} (expected a TIFF). Download the file again.")


def _first_page(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Tags of the first page; its ``next`` is 0 where no page follows. No pixel is read."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
    stream = io.BytesIO(data)
    if not 8 <= tags.next < len(data):
        raise PipelineError(f"damaged or truncated TIFF of {len(data)} bytes. Restore the file from its source.")
    stream.seek(tags.next)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        tags.load(stream)  # where the file ends too early, Pillow warns and goes on without the rest of the tags
    if complaints or _WIDTH not in tags or _HEIGHT not in tags:
        raise PipelineError(
            f"damaged or truncated TIFF of {len(data)} bytes: tags missing. Restore the file from its source."
        )
    return tags


def _check_header(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, kind: str) -> None:
    """Refuse by the header alone: size, pages, type and number of samples."""
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise PipelineError(
            f"the header claims {height} x {width} px (expected 1 to {MAX_SIDE_PX} a side). Replace the file."
        )
    if tags.next:
        raise PipelineError("several pages (expected one slice a file). Split the file, one page a slice.")
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
    expected = 3 if kind == "image" else 1
    if samples != expected:
        names = {1: "grayscale or palette", 2: "grayscale + alpha", 3: "RGB", 4: "RGBA or CMYK"}
        wanted = "RGB: pre-contrast, FLAIR, post-contrast" if kind == "image" else "1 channel"
        raise PipelineError(
            f"{samples} channel(s), {names.get(samples, 'unknown')} (expected {wanted}). Replace the file."
        )


def _check_mode(mode: str, kind: str) -> None:
    """Refuse what the header check cannot see: palettes, YCbCr, Lab."""
    allowed = ("RGB",) if kind == "image" else ("L", "1")
    if mode not in allowed:
        raise PipelineError(f"pixel mode {mode} (expected {' or '.join(allowed)}). Convert the file.")


def _sequence(value: Any) -> tuple[int, ...]:
    """A tag's value as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _not_finite(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, bits: int) -> str:
    """`` holding NaN`` where an uncompressed float page does; Pillow itself reads no float RGB."""
    if tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED or bits not in (16, 32, 64):
        return ""
    order = "<" if data[:2] == b"II" else ">"
    strips = zip(_sequence(tags.get(_STRIPS, ())), _sequence(tags.get(_STRIP_BYTES, ())), strict=False)
    raw = b"".join(data[start : start + size - size % (bits // 8)] for start, size in strips)
    values = np.frombuffer(raw[: len(raw) - len(raw) % (bits // 8)], dtype=f"{order}f{bits // 8}")
    found = [name for name, hit in (("NaN", np.isnan(values).any()), ("Inf", np.isinf(values).any())) if hit]
    return " holding " + " and ".join(found) if found else ""


def nifti_bytes(volume: Pixels) -> bytes:
    """A gzipped NIfTI-1 file of a volume; the same volume gives the same bytes.

    Args:
        volume: (H, W, D) or (H, W, D, 3) uint8, H image row, W image column, D slice.
    """
    image = nib.Nifti1Image(volume, AFFINE)  # type: ignore[no-untyped-call]
    image.header["descrip"] = DESCRIPTION
    return _gzipped(image)


def _gzipped(image: nib.Nifti1Image) -> bytes:
    """Compress at level 1 with neither time nor file name in the gzip header, so that hashes can be compared."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=buffer, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def load_label(path: Path) -> Pixels:
    """Read a label volume or a predicted mask.

    Args:
        path: the NIfTI file.

    Returns:
        (H, W, D) uint8, 0 background, 1 FLAIR abnormality.

    Raises:
        PipelineError: missing, damaged, not 3-D, or with values other than 0 and 1.
    """
    volume = read_voxels(path)
    if volume.ndim != 3:
        raise PipelineError(f"{path}: shape {volume.shape} (expected (H, W, D)). Give the label volume, not the image.")
    if not np.isin(volume, (0, 1)).all():
        odd = ", ".join(str(value) for value in np.setdiff1d(volume, (0, 1))[:5])
        raise PipelineError(f"{path}: voxel values {odd} (expected 0 and 1). Binarise the label.")
    return volume.astype(np.uint8, copy=False)


def load_image(path: Path) -> NDArray[Any]:
    """Read an image volume.

    Args:
        path: the NIfTI file.

    Returns:
        (H, W, D, 3), numbers of the file's type, channels pre-contrast, FLAIR, post-contrast.

    Raises:
        PipelineError: missing, damaged, or not three channels.
    """
    volume = read_voxels(path)
    if volume.ndim != 4 or volume.shape[3] != 3:
        raise PipelineError(f"{path}: shape {volume.shape} (expected (H, W, D, 3)). Give the image volume.")
    return volume


def refuse_unusable(path: Path) -> None:
    """Refuse an image volume that is damaged, or in which there is no head to find.

    Args:
        path: of a NIfTI image volume, (H, W, D, 3).

    Raises:
        PipelineError: it is.
    """
    fault = voxel_fault(load_image(path))
    if fault:
        raise PipelineError(f"{path}: {fault}. Check the volume.")


def load_map(path: Path) -> NDArray[np.float32]:
    """Read a probability or uncertainty volume.

    Args:
        path: the NIfTI file.

    Returns:
        (H, W, D) float32.

    Raises:
        PipelineError: missing, damaged, not 3-D, or with values that are not finite.
    """
    volume = read_voxels(path)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise PipelineError(f"{path}: shape {volume.shape}, or NaN or Inf among the voxels (expected (H, W, D)).")
    return volume.astype(np.float32, copy=False)


def shown_in_grey(channel: NDArray[Any]) -> Pixels:
    """A channel as 8-bit grey: as it is where it has 8 bits, else between its 0.1st and 99.9th percentile.

    Args:
        channel: (H, W, D), numbers.
    """
    if channel.dtype == np.uint8:
        return channel
    low, high = np.percentile(channel, (0.1, 99.9))
    scaled = (channel.astype(np.float32) - low) / max(high - low, 1e-6)
    grey: Pixels = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return grey


def voxel_ml(path: Path) -> float | None:
    """Volume of a voxel in ml; None where the spacing is not known.

    Args:
        path: of a NIfTI volume.

    Raises:
        PipelineError: missing or no NIfTI file.
    """
    header = open_nifti(path).header
    if header.get_xyzt_units()[0] != "mm" or header["descrip"].tobytes().startswith(DESCRIPTION):
        return None
    return float(np.prod(header.get_zooms()[:3])) / 1000


def save_mask(mask: NDArray[Any], path: Path, like: Path) -> None:
    """Write a mask that opens aligned with an image.

    Args:
        mask: (H, W, D), bool or integer, values 0 and 1.
        path: ends in ``.nii.gz``; replaced as a whole.
        like: NIfTI image of the same H, W, D whose affine and units are taken over.

    Raises:
        PipelineError: another shape, other values, an unreadable ``like``, or a disk that refuses.
    """
    if not np.isin(mask, (0, 1)).all():
        raise PipelineError(f"{path}: mask with values other than 0 and 1. Threshold it first.")
    _save_like(mask.astype(np.uint8), path, like)


def save_map(values: NDArray[np.float32], path: Path, like: Path) -> None:
    """Write a probability or uncertainty volume that opens aligned with an image.

    Args:
        values: (H, W, D) float32.
        path: ends in ``.nii.gz``; replaced as a whole.
        like: NIfTI image of the same H, W, D whose affine and units are taken over.

    Raises:
        PipelineError: another shape, an unreadable ``like``, or a disk that refuses.
    """
    _save_like(values, path, like)


def _save_like(volume: NDArray[Any], path: Path, like: Path) -> None:
    if not path.name.endswith(".nii.gz"):
        raise PipelineError(f"{path}: the name does not end in .nii.gz. Choose one that does.")
    reference = open_nifti(like)
    if volume.ndim != 3 or volume.shape != reference.shape[:3]:
        raise PipelineError(
            f"{path}: a volume of shape {volume.shape} (expected {reference.shape[:3]}, that of {like.name})."
        )
    header = reference.header.copy()
    header.set_data_dtype(volume.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    # Free text of another program, a patient's name perhaps.
    header["db_name"] = header["aux_file"] = header["intent_name"] = header["data_type"] = b""
    header.extensions.clear()
    header["descrip"] = DESCRIPTION if header["descrip"].tobytes().startswith(DESCRIPTION) else b"research only"
    image = nib.Nifti1Image(volume, reference.affine, header)  # type: ignore[no-untyped-call]
    write_durably(path, _gzipped(image))
