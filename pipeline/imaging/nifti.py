"""NIfTI volumes: images, labels, masks and maps read and written, each file whole or not at all."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.imaging.tiff import Pixels
from pipeline.scripts.files import write_durably
from pipeline.scripts.volumes import AFFINE, open_nifti, read_voxels, voxel_fault

DESCRIPTION = b"spacing unknown; research only"


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

    Returns:
        (H, W, D) uint8, 0 background, 1 FLAIR abnormality.
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

    Returns:
        (H, W, D, 3), numbers of the file's type, channels pre-contrast, FLAIR, post-contrast.
    """
    volume = read_voxels(path)
    if volume.ndim != 4 or volume.shape[3] != 3:
        raise PipelineError(f"{path}: shape {volume.shape} (expected (H, W, D, 3)). Give the image volume.")
    return volume


def refuse_unusable(path: Path) -> None:
    """Refuse an image volume that is damaged, or in which there is no head to find.

    Args:
        path: A NIfTI image volume, (H, W, D, 3).
    """
    fault = voxel_fault(load_image(path))
    if fault:
        raise PipelineError(f"{path}: {fault}. Check the volume.")


def load_map(path: Path) -> NDArray[np.float32]:
    """Read a probability or uncertainty volume.

    Returns:
        (H, W, D) float32.
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
    """Volume of a voxel in ml; None where the spacing is not known."""
    header = open_nifti(path).header
    if header.get_xyzt_units()[0] != "mm" or header["descrip"].tobytes().startswith(DESCRIPTION):
        return None
    return float(np.prod(header.get_zooms()[:3])) / 1000


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
    header["db_name"] = header["aux_file"] = header["intent_name"] = header["data_type"] = b""
    header.extensions.clear()
    header["descrip"] = DESCRIPTION if header["descrip"].tobytes().startswith(DESCRIPTION) else b"research only"
    image = nib.Nifti1Image(volume, reference.affine, header)  # type: ignore[no-untyped-call]
    write_durably(path, _gzipped(image))
