"""NIfTI volumes: what is refused by the header, and what by the voxels."""

from __future__ import annotations

import errno
import gzip
import itertools
import math
import stat
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from .faults import PipelineError, fault_lines, shown

MAX_VALUES = 2**28
"""Values of a volume: 512 x 512 x 340 voxels of three channels; a GB as 32-bit numbers."""

AFFINE = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""(row, column, slice) -> (right, anterior, superior): rows grow to posterior, columns to the patient's left
(radiological convention), slices to superior. The networks see volumes in this orientation. The spacing of the
published slices is unknown, hence 1."""

NO_ORIENTATION = (
    "the header tells no orientation (qform and sform code are 0). Set its affine with a viewer or nibabel, or give "
    "the voxels as an array to pipeline.segment."
)

MAX_SHIFT_MM = 0.5
"""The most by which the corners of image and label may lie apart: programs round what they write."""

_MM = {"meter": 1000, "micron": 0.001}
"""Unit that a header names -> mm. A file that names none is taken to be in mm, as other programs do."""

_NIBABEL_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


def open_nifti(path: Path) -> Any:
    """A NIfTI image with its header read and its voxels still on the disk.

    Args:
        path: The file, ``.nii`` or ``.nii.gz``.

    Raises:
        PipelineError: The file is missing, is no NIfTI file, claims more than ``MAX_VALUES`` values, or its affine does
            not tell where a voxel lies.
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
        raise PipelineError(f"{path}: a {type(image).__name__} (expected NIfTI). Convert it to .nii.gz.")
    if math.prod(image.shape) > MAX_VALUES:
        raise PipelineError(
            f"{path}: the header claims {' x '.join(map(str, image.shape))} values (expected at most {MAX_VALUES}). "
            "Replace the file, or crop or resample the volume."
        )
    if not tells_orientation(image):
        raise PipelineError(f"{path}: {NO_ORIENTATION}")
    if not np.isfinite(image.affine).all() or not np.linalg.det(image.affine[:3, :3]):
        raise PipelineError(f"{path}: an affine that places no voxel ({image.affine.tolist()}). Mend the header.")
    space, time = int(image.header["xyzt_units"]) % 8, int(image.header["xyzt_units"]) // 8
    if space > 3 or time > 6:  # no units of NIfTI's, on which nibabel fails
        image.header.set_xyzt_units("unknown")
    return image


def affine_mm(image: Any) -> NDArray[np.float64]:
    """(4, 4), voxel of a NIfTI image -> right, anterior, superior in mm, whatever the unit of its own affine."""
    to_mm = _MM.get(image.header.get_xyzt_units()[0], 1)
    affine: NDArray[np.float64] = np.diag([to_mm, to_mm, to_mm, 1]) @ image.affine
    return affine


def tells_orientation(image: Any) -> bool:
    """Whether a NIfTI header says where right, anterior and superior are; nibabel makes up an affine where not."""
    return bool(image.header["qform_code"] or image.header["sform_code"])


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
    if not path.name.lower().endswith(".gz"):
        return
    # The size that the header tells, and room for extensions and padding.
    left = math.prod(image.shape) * int(image.get_data_dtype().itemsize) + 2**24
    with gzip.open(path) as file:
        while chunk := file.read(2**20):
            left -= len(chunk)
            if left < 0:
                raise OSError(errno.EINVAL, "longer than its header says")


def check_image(path: Path) -> None:
    """Refuse, by its header alone, a volume that the networks cannot read.

    Args:
        path: A NIfTI image volume of any orientation: (H, W, D) FLAIR, or (H, W, D, 3) pre-contrast, FLAIR,
            post-contrast. ITK writes channels as (H, W, D, 1, 3), which will do.

    Raises:
        PipelineError: The file is missing or no NIfTI file, is of another shape, or holds no numbers.
    """
    image = open_nifti(path)
    if len(image.shape) < 3 or image.shape[3:] not in ((), (1,), (3,), (1, 1), (1, 3)) or 0 in image.shape:
        raise PipelineError(
            f"{path}: shape {image.shape} (expected (H, W, D) FLAIR, or (H, W, D, 3): pre-contrast, FLAIR, "
            "post-contrast). Give the FLAIR volume alone, or stack the three sequences along the last axis."
        )
    if image.get_data_dtype().kind not in "uif":
        raise PipelineError(f"{path}: voxels of type {image.get_data_dtype()} (expected numbers). Convert the volume.")


def check_label(path: Path, image: Path, label: Any = None) -> None:
    """Refuse, by the headers alone, a label volume on another grid than its image.

    Args:
        path: A NIfTI label volume, (H, W, D).
        image: The image volume. Label and image may be stored in different orientations.
        label: The NIfTI image of a label of another format, which ``path`` names in messages; None to read ``path``.

    Raises:
        PipelineError: The file is missing or no NIfTI file, or its voxels lie elsewhere than the image's.
    """
    (shape, affine), (expected, places) = (
        _grid(one) for one in (open_nifti(path) if label is None else label, open_nifti(image))
    )
    if shape != expected:
        raise PipelineError(
            f"{path}: a label of {shape} voxels on an image of {expected} (rows, columns, slices). Resample the label."
        )
    far = float(np.linalg.norm(apply_affine(affine - places, corners(shape)), axis=1).max())
    if far > MAX_SHIFT_MM:
        raise PipelineError(
            f"{path}: by its affine it lies up to {far:.3g} mm away from {image.name}. Resample the label onto the "
            "image's grid, or mend its header."
        )


def corners(shape: Iterable[int]) -> NDArray[np.int64]:
    """(8, 3), the voxels in the corners of a volume."""
    return np.array(list(itertools.product(*((0, size - 1) for size in shape))))


def _grid(image: Any) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (H, W, D) and affine in mm of a volume turned into the orientation of ``AFFINE``."""
    turned = nib.Nifti1Image(np.broadcast_to(np.uint8(0), image.shape[:3]), affine_mm(image))
    turned = turned.as_reoriented(turn_of(image.affine))
    return turned.shape, turned.affine


def oriented(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A volume turned so that rows run to posterior, columns to the patient's left, slices upwards; not resampled.

    Args:
        volume: (I, J, K) or (I, J, K, C), as stored.
        affine: (4, 4), voxel to right, anterior, superior in mm. An oblique one is taken for the nearest axes.

    Returns:
        (H, W, D) or (H, W, D, C), a view where that is possible.
    """
    turned: NDArray[Any] = nib.apply_orientation(volume, turn_of(affine))
    return turned


def turn_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nibabel's orientation transform from a volume as stored to the axes of ``AFFINE``."""
    turn: NDArray[np.float64] = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(AFFINE))
    return turn


def refuse_faults(items: Iterable[Mapping[str, Any]], *, voxels: bool = False) -> None:
    """Refuse volumes that the networks cannot read; all faults are told at once.

    Args:
        items: "image" is a NIfTI file, "label" another where there is one.
        voxels: Also read the voxels of the images.

    Raises:
        PipelineError: A line for each image or label that is refused, or for more than three of the same fault.
    """
    faults = []
    for item in items:
        image = Path(item["image"])
        try:
            check_image(image)
            if "label" in item:
                check_label(Path(item["label"]), image)
            if voxels and (fault := voxel_fault(read_voxels(image))):
                faults.append((str(image), f"{fault}."))
        except PipelineError as error:
            label = f"{item.get('label')}: "
            subject = label if str(error).startswith(label) else f"{image}: "
            faults.append((subject.removesuffix(": "), str(error).removeprefix(subject)))
    if faults:
        raise PipelineError(fault_lines(faults))


def voxel_fault(voxels: NDArray[Any]) -> str:
    """The reason why no head can be found in an image volume, empty where there is none.

    Args:
        voxels: The image volume, of any shape.
    """
    odd = voxels.size - int(np.isfinite(voxels).sum())
    if odd:
        return f"{odd} of {voxels.size} voxels are NaN or Inf. Replace them, by 0 outside of the head"
    if voxels.max() <= 0:
        lift = " Add an offset, so that air is 0" if voxels.min() < 0 else " Check the volume"
        return f"no voxel is above 0, and the head is what is brighter than a tenth of the maximum.{lift}"
    return ""


def label_fault(voxels: NDArray[Any]) -> str:
    """The reason why a volume is no label, empty where it is one: 0, and one positive value for the lesion.

    Args:
        voxels: The label volume, of any shape.
    """
    top = voxels.max()
    if np.isfinite(top) and top >= 0 and ((voxels == 0) | (voxels == top)).all():
        return ""
    values = np.unique(voxels)
    first = ", ".join(f"{value:g}" for value in values[:5])
    return f"voxel values {first}{', ...' if len(values) > 5 else ''} (expected 0 and one other). Binarise the label."
