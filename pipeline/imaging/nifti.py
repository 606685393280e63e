"""Read and write NIfTI images, labels, masks and maps. A file is written completely or not at all."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.imaging.formats import LPS
from pipeline.imaging.pictures import Pixels
from pipeline.scripts.files import write_durably
from pipeline.scripts.manifest import CHANNELS
from pipeline.scripts.volumes import (
    AFFINE,
    affine_mm,
    check_image,
    label_fault,
    open_nifti,
    oriented,
    read_voxels,
    turn_of,
    voxel_fault,
)

DESCRIPTION = b"spacing unknown; research only"
THICK_MM = 2.5
"""Slices are thick if they are further apart than this and than twice the pixel size."""


def nifti_bytes(volume: Pixels) -> bytes:
    """The bytes of a gzipped NIfTI-1 file of a volume. The same volume gives the same bytes.

    Args:
        volume: (H, W, D) or (H, W, D, 3) uint8, with H image rows, W image columns and D slices.
    """
    image = nib.Nifti1Image(volume, AFFINE)
    image.header["descrip"] = DESCRIPTION
    return _gzipped(image)


def _gzipped(image: nib.Nifti1Image) -> bytes:
    """The gzipped bytes of an image, without time and file name in the header, so that hashes can be compared."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=buffer, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def oddities(path: Path) -> list[str]:
    """Warnings about the geometry of an image volume, each a line of text. In general there are none.

    Args:
        path: The NIfTI file of the image.
    """
    image, spacing = open_nifti(path), spacing_mm(path)
    found = []
    if spacing and max(spacing) > max(THICK_MM, 2 * min(spacing)) and max(spacing) > spacing[2]:
        plane = ("coronal", "sagittal")[int(np.argmax(spacing))]
        found.append(
            f"{plane} slices {max(spacing):.3g} mm apart: the networks see axial slices, which have few rows in this "
            "image, so that the mask is coarse"
        )
    has_unit = image.header.get_xyzt_units()[0] != "unknown"
    if np.array_equal(image.affine, np.eye(4)) or (np.array_equal(image.affine, LPS) and not has_unit):
        axes = "right, anterior" if image.affine[0, 0] > 0 else "left, posterior"
        found.append(
            f"the file names no orientation (its affine is a default): the axes are assumed to run to {axes} and "
            "superior. Check that the mask fits"
        )
    own, true = (float(np.prod(voxel_sizes(affine))) for affine in (image.affine, affine_mm(image)))
    stated = float(np.prod(image.header.get_zooms()[:3])) * true / own
    if abs(stated - true) > 0.01 * true:
        found.append(f"the header's voxel size {stated:.3g} mm3 contradicts its affine, {true:.3g} mm3, which is used")
    return found


def save_image(image: nib.Nifti1Image, path: Path) -> NDArray[Any]:
    """Write an image volume with its affine and unit. No other field of the header is kept.

    Args:
        image: An image of numbers, (I, J, K) or (I, J, K, 3).
        path: The file to write, whose name ends in ``.nii.gz``. An existing file is replaced.

    Returns:
        The voxels as they were written.
    """
    voxels = np.asarray(image.dataobj)
    if voxels.dtype.kind not in "uif":
        raise PipelineError(f"{path.name}: voxels of type {voxels.dtype} (expected numbers). Convert it to gray.")
    if voxels.dtype.kind not in "ui" or voxels.dtype.itemsize > 2:  # few programs read 64 bits, and 32 are enough
        voxels = voxels.astype(np.float32)
    clean = nib.Nifti1Image(voxels, image.affine)
    clean.header.set_xyzt_units(image.header.get_xyzt_units()[0])
    clean.header["descrip"] = b"research only"
    write_durably(path, _gzipped(clean))
    return voxels


def load_label(path: Path) -> Pixels:
    """A label volume or a predicted mask, turned into the orientation that the networks see.

    Args:
        path: The NIfTI file, in any orientation.

    Returns:
        (H, W, D) uint8, 0 for background and 1 for FLAIR abnormality. Rows run to posterior, columns to the patient's
        left, slices upwards.

    Raises:
        PipelineError: The file cannot be read, or is not a label.
    """
    volume = read_voxels(path)
    volume = volume[..., 0] if volume.shape[3:] == (1,) else volume
    if volume.ndim != 3:
        raise PipelineError(f"{path}: shape {volume.shape} (expected (H, W, D)). Give the label volume, not the image.")
    fault = label_fault(volume)
    if fault:
        raise PipelineError(f"{path}: {fault}")
    return oriented((volume > 0).astype(np.uint8), open_nifti(path).affine)


def load_image(path: Path) -> NDArray[Any]:
    """An image volume, turned into the orientation that the networks see.

    Args:
        path: The NIfTI file, in any orientation.

    Returns:
        (H, W, D, 3), numbers of the file's type, with the channels pre-contrast, FLAIR, post-contrast. All three are
        FLAIR if the file holds only FLAIR. Rows run to posterior, columns to the patient's left, slices upwards.

    Raises:
        PipelineError: The file cannot be read, or its shape is not that of an image.
    """
    check_image(path)
    return as_seen(read_voxels(path), path)


def as_seen(voxels: NDArray[Any], path: Path) -> NDArray[Any]:
    """The voxels of an image file in the form of ``load_image``, as a view if possible.

    Args:
        voxels: The voxels of the file as stored, (I, J, K) or with channels.
        path: The NIfTI file, whose affine gives the orientation.
    """
    channels = voxels.reshape(*voxels.shape[:3], -1)
    return oriented(np.broadcast_to(channels, (*voxels.shape[:3], len(CHANNELS))), open_nifti(path).affine)


def refuse_unusable(path: Path) -> None:
    """Refuse an image volume that is damaged, or in which no head can be found.

    Args:
        path: The NIfTI file of the image.

    Raises:
        PipelineError: The volume cannot be used.
    """
    check_image(path)
    fault = voxel_fault(read_voxels(path))
    if fault:
        raise PipelineError(f"{path}: {fault}.")


def load_map(path: Path) -> NDArray[np.float32]:
    """A probability or uncertainty volume, (H, W, D) float32, in the orientation of ``load_image``.

    Args:
        path: The NIfTI file, in any orientation.

    Raises:
        PipelineError: The file cannot be read, has another shape, or holds NaN or Inf.
    """
    volume = read_voxels(path)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise PipelineError(
            f"{path}: shape {volume.shape}, or NaN or Inf among the voxels (expected (H, W, D)). Predict it again."
        )
    return oriented(volume.astype(np.float32, copy=False), open_nifti(path).affine)


def shown_in_gray(channel: NDArray[Any]) -> Pixels:
    """A channel as 8-bit gray. Other types are scaled from the 0.1st to the 99.9th percentile.

    Args:
        channel: (H, W, D), of any number type.
    """
    if channel.dtype == np.uint8:
        return channel
    low, high = np.percentile(channel, (0.1, 99.9))
    scaled = channel.astype(np.float32)  # the next steps work in place, because a volume may take a third of the memory
    scaled -= low
    scaled *= 255 / max(high - low, 1e-6)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)


def spacing_mm(path: Path) -> tuple[float, float, float] | None:
    """The distance of rows, columns and slices in mm, in the orientation of ``load_image``; None if unknown.

    The distance comes from the affine. Without a unit, mm is assumed, as in other programs. The distance is unknown if
    the affine is the identity, or if voxels measure 1 x 1 x 1 without a unit and without a place in the scanner. Nobody
    has set such values.

    Args:
        path: The NIfTI file, in any orientation.
    """
    image = open_nifti(path)
    sizes = voxel_sizes(affine_mm(image))
    has_unit, has_place = image.header.get_xyzt_units()[0] != "unknown", image.affine[:3, 3].any()
    nobody_set = not has_unit and not has_place and np.allclose(sizes, 1)
    nobody_set |= np.array_equal(image.affine, np.eye(4))
    if nobody_set or image.header["descrip"].tobytes().startswith(DESCRIPTION):
        return None
    rows, columns, slices = (float(sizes[axis]) for axis in np.argsort(turn_of(image.affine)[:, 0]))
    return rows, columns, slices


def save_mask(mask: NDArray[Any], path: Path, like: Path) -> None:
    """Write a mask that opens aligned with an image.

    Args:
        mask: (H, W, D), bool or integer, with the values 0 and 1.
        path: The file to write, whose name ends in ``.nii.gz``. An existing file is replaced.
        like: NIfTI file of the same shape, whose affine and units are copied.
    """
    if not np.isin(mask, (0, 1)).all():
        raise PipelineError(f"{path}: mask with values other than 0 and 1. Threshold it first.")
    _save_like(mask.astype(np.uint8), path, like)


def save_map(values: NDArray[np.float32], path: Path, like: Path) -> None:
    """Write a probability or uncertainty volume that opens aligned with an image.

    Args:
        values: The volume, (H, W, D) float32.
        path: The file to write, whose name ends in ``.nii.gz``. An existing file is replaced.
        like: NIfTI file of the same shape, whose affine and units are copied.
    """
    _save_like(values, path, like)


def _save_like(volume: NDArray[Any], path: Path, like: Path) -> None:
    if not path.name.endswith(".nii.gz"):
        raise PipelineError(f"{path}: the name does not end in .nii.gz. Choose another name.")
    reference = open_nifti(like)
    if volume.ndim != 3 or volume.shape != reference.shape[:3]:
        raise PipelineError(
            f"{path}: a volume of shape {volume.shape} (expected {reference.shape[:3]}, the shape of {like.name})."
        )
    header = reference.header.copy()
    header.set_data_dtype(volume.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("none")  # ITK writes channels as a vector
    # These fields hold free text of other programs, perhaps a patient's name.
    for name in {"db_name", "aux_file", "data_type"} & {*header.keys()}:  # NIfTI-2 lacks two
        header[name] = b""
    header.extensions.clear()
    header["descrip"] = DESCRIPTION if header["descrip"].tobytes().startswith(DESCRIPTION) else b"research only"
    image = nib.Nifti1Image(volume, reference.affine, header)
    write_durably(path, _gzipped(image))
