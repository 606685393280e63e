"""NIfTI volumes: images, labels, masks and maps read and written, each file whole or not at all."""

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
"""Slices further apart than this, and than twice the pixels, are thick."""


def nifti_bytes(volume: Pixels) -> bytes:
    """A gzipped NIfTI-1 file of a volume; the same volume gives the same bytes.

    Args:
        volume: (H, W, D) or (H, W, D, 3) uint8, H image row, W image column, D slice.
    """
    image = nib.Nifti1Image(volume, AFFINE)
    image.header["descrip"] = DESCRIPTION
    return _gzipped(image)


def _gzipped(image: nib.Nifti1Image) -> bytes:
    """Compress at level 1 with neither time nor file name in the gzip header, so that hashes can be compared."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=buffer, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def oddities(path: Path) -> list[str]:
    """What a person wants to know of an image volume before its mask is used: each a line, in general none."""
    image, spacing = open_nifti(path), spacing_mm(path)
    found = []
    if spacing and max(spacing) > max(THICK_MM, 2 * min(spacing)) and max(spacing) > spacing[2]:
        plane = ("coronal", "sagittal")[int(np.argmax(spacing))]
        found.append(
            f"{plane} slices {max(spacing):.3g} mm apart: the networks see axial slices, which are made of few rows "
            "here, so that the mask is coarse"
        )
    if np.array_equal(image.affine, np.eye(4)):
        found.append(
            "the affine is the identity, as of programs that know no orientation: the axes are taken to run to right, "
            "anterior and superior. Check that the mask fits"
        )
    own, true = (float(np.prod(voxel_sizes(affine))) for affine in (image.affine, affine_mm(image)))
    stated = float(np.prod(image.header.get_zooms()[:3])) * true / own
    if abs(stated - true) > 0.01 * true:
        found.append(f"the header's voxel size {stated:.3g} mm3 contradicts its affine, {true:.3g} mm3, which is used")
    return found


def save_image(image: nib.Nifti1Image, path: Path) -> NDArray[Any]:
    """Write an image volume with its affine and unit; of the header's other fields nothing is kept.

    Args:
        image: (I, J, K) or (I, J, K, 3), numbers.
        path: The file, whose name ends in ``.nii.gz``; replaced as a whole.

    Returns:
        The voxels as they were written.
    """
    voxels = np.asarray(image.dataobj)
    if voxels.dtype.kind not in "uif":
        raise PipelineError(f"{path.name}: voxels of type {voxels.dtype} (expected numbers). Convert it to gray.")
    if voxels.dtype.kind not in "ui" or voxels.dtype.itemsize > 2:  # 64 bits tell no more, and few programs read them
        voxels = voxels.astype(np.float32)
    clean = nib.Nifti1Image(voxels, image.affine)
    clean.header.set_xyzt_units(image.header.get_xyzt_units()[0])
    clean.header["descrip"] = b"research only"
    write_durably(path, _gzipped(clean))
    return voxels


def load_label(path: Path) -> Pixels:
    """Read a label volume or a predicted mask; whatever its orientation, it comes as the networks see volumes.

    Returns:
        (H, W, D) uint8, 0 background, 1 FLAIR abnormality; rows to posterior, columns to the patient's left, slices
        upwards.
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
    """Read an image volume; whatever its orientation, it comes as the networks see volumes.

    Returns:
        (H, W, D, 3), numbers of the file's type, channels pre-contrast, FLAIR, post-contrast, all three FLAIR where the
        file holds nothing else; rows to posterior, columns to the patient's left, slices upwards.
    """
    check_image(path)
    return as_seen(read_voxels(path), path)


def as_seen(voxels: NDArray[Any], path: Path) -> NDArray[Any]:
    """The voxels of an image file as ``load_image`` gives them, a view where that is possible."""
    channels = voxels.reshape(*voxels.shape[:3], -1)
    return oriented(np.broadcast_to(channels, (*voxels.shape[:3], len(CHANNELS))), open_nifti(path).affine)


def refuse_unusable(path: Path) -> None:
    """Refuse an image volume that is damaged, or in which there is no head to find."""
    check_image(path)
    fault = voxel_fault(read_voxels(path))
    if fault:
        raise PipelineError(f"{path}: {fault}.")


def load_map(path: Path) -> NDArray[np.float32]:
    """Read a probability or uncertainty volume, (H, W, D) float32, in the orientation of ``load_image``."""
    volume = read_voxels(path)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise PipelineError(
            f"{path}: shape {volume.shape}, or NaN or Inf among the voxels (expected (H, W, D)). Make it again."
        )
    return oriented(volume.astype(np.float32, copy=False), open_nifti(path).affine)


def shown_in_grey(channel: NDArray[Any]) -> Pixels:
    """A channel as 8-bit grey: as it is where it has 8 bits, else between its 0.1st and 99.9th percentile.

    Args:
        channel: (H, W, D), numbers.
    """
    if channel.dtype == np.uint8:
        return channel
    low, high = np.percentile(channel, (0.1, 99.9))
    scaled = channel.astype(np.float32)  # then in place: a volume may take a third of the memory
    scaled -= low
    scaled *= 255 / max(high - low, 1e-6)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)


def spacing_mm(path: Path) -> tuple[float, float, float] | None:
    """Distance of rows, columns and slices in mm, in the orientation of ``load_image``; None where it is not known.

    It comes from the affine. A file that names no unit is taken to be in mm, as other programs do, unless its voxels
    measure 1 x 1 x 1: nobody has set them. Nor has anybody set an affine that is the identity.
    """
    image = open_nifti(path)
    sizes = voxel_sizes(affine_mm(image))
    nobody_set = image.header.get_xyzt_units()[0] == "unknown" and np.allclose(sizes, 1)
    nobody_set |= np.array_equal(image.affine, np.eye(4))
    if nobody_set or image.header["descrip"].tobytes().startswith(DESCRIPTION):
        return None
    rows, columns, slices = (float(sizes[axis]) for axis in np.argsort(turn_of(image.affine)[:, 0]))
    return rows, columns, slices


def save_mask(mask: NDArray[Any], path: Path, like: Path) -> None:
    """Write a mask that opens aligned with an image.

    Args:
        mask: (H, W, D), bool or integer, values 0 and 1.
        path: The file, whose name ends in ``.nii.gz``; replaced as a whole.
        like: NIfTI image of the same H, W, D whose affine and units are taken over.
    """
    if not np.isin(mask, (0, 1)).all():
        raise PipelineError(f"{path}: mask with values other than 0 and 1. Threshold it first.")
    _save_like(mask.astype(np.uint8), path, like)


def save_map(values: NDArray[np.float32], path: Path, like: Path) -> None:
    """Write a probability or uncertainty volume that opens aligned with an image.

    Args:
        values: (H, W, D) float32.
        path: The file, whose name ends in ``.nii.gz``; replaced as a whole.
        like: NIfTI image of the same H, W, D whose affine and units are taken over.
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
    for name in {"db_name", "aux_file", "intent_name", "data_type"} & {*header.keys()}:  # NIfTI-2 lacks two
        header[name] = b""
    header.extensions.clear()
    header["descrip"] = DESCRIPTION if header["descrip"].tobytes().startswith(DESCRIPTION) else b"research only"
    image = nib.Nifti1Image(volume, reference.affine, header)
    write_durably(path, _gzipped(image))
