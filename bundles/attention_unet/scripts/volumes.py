"""NIfTI volumes: what is refused by the header, and what by the voxels."""

from __future__ import annotations

import errno
import gzip
import math
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .faults import PipelineError, shown

MAX_VALUES = 2**28
"""Values of a volume: 512 x 512 x 340 voxels of three channels; a GB as 32-bit numbers."""

AFFINE = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""(row, column, slice) -> (right, anterior, superior): rows grow to posterior, columns to the patient's left
(radiological convention), slices to superior. The spacing of the published slices is unknown, hence 1."""

_NIBABEL_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


def open_nifti(path: Path) -> Any:
    """A NIfTI-1 image with its header read and its voxels still on the disk.

    Args:
        path: The file, ``.nii`` or ``.nii.gz``.

    Raises:
        PipelineError: The file is missing, is no NIfTI-1 file, or claims more than ``MAX_VALUES`` values.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PipelineError(f"{path}: no file, but a folder, pipe, socket or device. Name a NIfTI file.")
        image = nib.load(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path}: no such file. Check the path; a manifest's volumes are built by python -m pipeline.manifest."
        ) from error
    except (OSError, EOFError, ValueError, zlib.error, *_NIBABEL_ERRORS) as error:
        raise PipelineError(f"{path}: no readable NIfTI file ({shown(error)}). Build or copy it again.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise PipelineError(f"{path}: a {type(image).__name__} (expected NIfTI-1). Convert it to .nii.gz.")
    if math.prod(image.shape) > MAX_VALUES:
        raise PipelineError(
            f"{path}: the header claims {' x '.join(map(str, image.shape))} values (expected at most {MAX_VALUES}). "
            "Replace the file, or crop or resample the volume."
        )
    return image


def read_voxels(path: Path) -> NDArray[Any]:
    """All voxels of a NIfTI file, numbers of the file's type.

    Args:
        path: The file.

    Raises:
        PipelineError: The file is missing, damaged or cut short.
    """
    image = open_nifti(path)
    try:
        _refuse_damaged(path, image)
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise PipelineError(f"{path}: damaged NIfTI file ({shown(error)}). Build or copy it again.") from error


def _refuse_damaged(path: Path, image: nib.Nifti1Image) -> None:
    """Read a gzipped file to its end, where its checksum stands: nibabel stops at the last voxel.

    Raises:
        OSError, EOFError, zlib.error: The file is damaged, or far longer than its header says.
    """
    if not path.name.endswith(".gz"):
        return
    # The size that the header tells, and room for extensions and padding.
    left = math.prod(image.shape) * int(image.get_data_dtype().itemsize) + 2**24  # type: ignore[no-untyped-call]
    with gzip.open(path) as file:
        while chunk := file.read(2**20):
            left -= len(chunk)
            if left < 0:
                raise OSError(errno.EINVAL, "longer than its header says")


def check_image(path: Path) -> None:
    """Refuse, by its header alone, a volume that the networks cannot read.

    Args:
        path: A NIfTI image volume, (H, W, D, 3): pre-contrast, FLAIR, post-contrast.

    Raises:
        PipelineError: The file is missing or no NIfTI file, has not three channels or no numbers, or has other axes
            than ``AFFINE``.
    """
    image = open_nifti(path)
    if len(image.shape) != 4 or image.shape[3] != 3 or 0 in image.shape:
        raise PipelineError(
            f"{path}: shape {image.shape} (expected (H, W, D, 3): pre-contrast, FLAIR, post-contrast). "
            "Stack the three sequences along the last axis; FLAIR stands in for one that is missing."
        )
    if image.get_data_dtype().kind not in "uif":
        raise PipelineError(f"{path}: voxels of type {image.get_data_dtype()} (expected numbers). Convert the volume.")
    if not np.isfinite(image.affine).all() or not np.linalg.det(image.affine[:3, :3]):
        raise PipelineError(f"{path}: an affine that places no voxel ({image.affine.tolist()}). Mend the header.")
    axes, expected = (nib.aff2axcodes(affine) for affine in (image.affine, AFFINE))  # type: ignore[no-untyped-call]
    if axes != expected:
        raise PipelineError(
            f"{path}: axes {', '.join(map(str, axes))} (expected {', '.join(expected)}: rows to posterior, columns to "
            "the patient's left, slices to superior). Reorient the volume."
        )


def image_faults(paths: Iterable[Path]) -> dict[Path, str]:
    """``check_image`` of many volumes.

    Args:
        paths: The files.

    Returns:
        File -> fault, of those that are refused.
    """
    faults = {}
    for path in paths:
        try:
            check_image(path)
        except PipelineError as error:
            faults[path] = str(error).removeprefix(f"{path}: ")
    return faults


def voxel_fault(voxels: NDArray[Any]) -> str:
    """The reason why no head can be found in an image volume, empty where there is none.

    Args:
        voxels: The image volume, of any shape.
    """
    if not np.isfinite(voxels).all():
        return "it holds NaN or Inf"
    if voxels.max() <= 0:
        return "no voxel is above 0, and the head is what is brighter than a tenth of the maximum"
    return ""
