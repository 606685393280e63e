"""Reads NIfTI volumes, and refuses those with a wrong header or wrong voxels."""

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
"""The largest number of values in a volume: 512 x 512 x 340 voxels of three channels, 1 GB as 32-bit numbers."""

AFFINE = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""The orientation in which the networks see volumes: (row, column, slice) -> (right, anterior, superior).

Rows grow to posterior, columns to the patient's left (radiological convention), and slices to superior. The spacing is
1, because that of the published slices is unknown.
"""

NO_ORIENTATION = (
    "the header has no orientation (qform and sform code are 0). Set its affine with a viewer or nibabel, or give "
    "the voxels as an array to pipeline.segment."
)

MAX_SHIFT_MM = 0.5
"""The largest distance between corners of image and label. It is above 0 because programs round affines."""

_MM = {"meter": 1000, "micron": 0.001}
"""Length unit of a header -> mm. A file without a unit counts as in mm, as in other programs."""

_NIBABEL_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


def open_nifti(path: Path) -> Any:
    """A NIfTI image whose header is read and whose voxels are still on the disk.

    Args:
        path: The file, ``.nii`` or ``.nii.gz``.

    Raises:
        PipelineError: The file is missing, is not a NIfTI file, has no voxel or more than ``MAX_VALUES`` values, or its
            affine does not define where a voxel lies.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PipelineError(f"{path}: not a file, but a folder, pipe, socket or device. Name a NIfTI file.")
        image = nib.load(path)
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: no such file. Check the path.") from error
    except (OSError, EOFError, ValueError, zlib.error, *_NIBABEL_ERRORS) as error:
        raise PipelineError(f"{path}: no readable NIfTI file ({shown(error)}). Build or copy it again.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise PipelineError(f"{path}: a {type(image).__name__} (expected NIfTI). Convert it to .nii.gz.")
    if min(image.shape, default=0) < 1:
        raise PipelineError(f"{path}: holds no voxel. Replace the file.")
    if math.prod(image.shape) > MAX_VALUES:
        raise PipelineError(
            f"{path}: the header claims {' x '.join(map(str, image.shape))} values (expected at most {MAX_VALUES}). "
            "Replace the file, or crop or resample the volume."
        )
    if not tells_orientation(image):
        raise PipelineError(f"{path}: {NO_ORIENTATION}")
    if not np.isfinite(image.affine).all() or not np.linalg.det(image.affine[:3, :3]):
        raise PipelineError(f"{path}: the affine {image.affine.tolist()} is not invertible. Correct the header.")
    space, time = int(image.header["xyzt_units"]) % 8, int(image.header["xyzt_units"]) // 8
    if space > 3 or time > 6:  # nibabel fails on unknown units
        image.header.set_xyzt_units("unknown")
    return image


def affine_mm(image: Any) -> NDArray[np.float64]:
    """The affine of a NIfTI image, (4, 4), from voxel to right, anterior, superior in mm, whatever its own unit."""
    to_mm = _MM.get(image.header.get_xyzt_units()[0], 1)
    affine: NDArray[np.float64] = np.diag([to_mm, to_mm, to_mm, 1]) @ image.affine
    return affine


def tells_orientation(image: Any) -> bool:
    """Whether a NIfTI header defines right, anterior and superior. Where it does not, nibabel invents an affine."""
    return bool(image.header["qform_code"] or image.header["sform_code"])


def read_voxels(path: Path) -> NDArray[Any]:
    """All voxels of a NIfTI file, in the file's number type.

    Args:
        path: The file, ``.nii`` or ``.nii.gz``.

    Raises:
        PipelineError: The file is missing, damaged or cut short, or holds no numbers.
    """
    image = open_nifti(path)
    _refuse_no_numbers(path, image)
    try:
        _refuse_damaged(path, image)
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise PipelineError(f"{path}: damaged NIfTI file ({shown(error)}). Build or copy it again.") from error


def _refuse_damaged(path: Path, image: nib.Nifti1Image) -> None:
    """Read a gzipped file to its end, where its checksum is, because nibabel stops at the last voxel.

    Raises:
        OSError, EOFError, zlib.error: The file is damaged, or much longer than its header says.
    """
    if not path.name.lower().endswith(".gz"):
        return
    # The size that the header gives, plus space for extensions and padding.
    left = math.prod(image.shape) * int(image.get_data_dtype().itemsize) + 2**24
    with gzip.open(path) as file:
        while chunk := file.read(2**20):
            left -= len(chunk)
            if left < 0:
                raise OSError(errno.EINVAL, "longer than its header says")


def check_image(path: Path) -> None:
    """Refuse a volume that the networks cannot read. Only its header is read.

    Args:
        path: A NIfTI image volume of any orientation: (H, W, D) FLAIR, or (H, W, D, 3) pre-contrast, FLAIR,
            post-contrast. (H, W, D, 1, 3), as ITK writes it, is accepted too.

    Raises:
        PipelineError: The file is missing, is not a NIfTI file, has another shape, holds no numbers, or the networks
            would see it in another orientation.
    """
    image = open_nifti(path)
    if len(image.shape) < 3 or image.shape[3:] not in ((), (1,), (3,), (1, 1), (1, 3)):
        raise PipelineError(
            f"{path}: shape {image.shape} (expected (H, W, D) FLAIR, or (H, W, D, 3): pre-contrast, FLAIR, "
            "post-contrast). Give only the FLAIR volume, or stack the three sequences along the last axis."
        )
    _refuse_no_numbers(path, image)
    _refuse_misread(path)


@np.errstate(invalid="ignore")  # MONAI divides by the sizes of a missing sform
def _refuse_misread(path: Path) -> None:
    """Refuse a header from which MONAI, which reads volumes for the networks, takes another orientation.

    Where the voxel sizes contradict the sform, MONAI replaces it by the qform. With channels, it compares a shift, too.
    """
    image = open_nifti(path)
    own = nib.io_orientation(image.affine)
    try:
        if np.array_equal(*map(nib.io_orientation, (image.get_sform(), image.get_qform()))):
            return
        from monai.data.utils import correct_nifti_header_if_necessary  # loads PyTorch

        seen = nib.io_orientation(correct_nifti_header_if_necessary(image).affine)  # type: ignore[no-untyped-call]
    except (ValueError, *_NIBABEL_ERRORS):
        seen = None
    if not np.array_equal(own, seen):
        raise PipelineError(
            f"{path}: the networks would see it in another orientation, because sform, qform and voxel sizes disagree, "
            "or one form is missing. Set both to the right affine with a viewer or nibabel."
        )


def _refuse_no_numbers(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse voxels that are colors or complex numbers."""
    if image.get_data_dtype().kind not in "uif":
        raise PipelineError(f"{path}: voxels of type {image.get_data_dtype()} (expected numbers). Convert the volume.")


def check_label(path: Path, image: Path, label: Any = None) -> None:
    """Refuse a label volume on another grid than its image. Only the headers are read.

    Args:
        path: A NIfTI label volume, (H, W, D).
        image: The image volume. Label and image may be stored in different orientations.
        label: The label as a NIfTI image, if ``path`` has another format. None reads ``path``.

    Raises:
        PipelineError: The file is missing or not a NIfTI file, or its voxels and the image's lie in different places,
            or would for the networks.
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
            "image's grid, or correct its header."
        )
    if label is None:
        _refuse_misread(path)


def corners(shape: Iterable[int]) -> NDArray[np.int64]:
    """Indices of the voxels in the corners of a volume of this shape, (8, 3)."""
    return np.array(list(itertools.product(*((0, size - 1) for size in shape))))


def _grid(image: Any) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (H, W, D) and affine in mm of a volume turned into the orientation of ``AFFINE``."""
    turned = nib.Nifti1Image(np.broadcast_to(np.uint8(0), image.shape[:3]), affine_mm(image))
    turned = turned.as_reoriented(turn_of(image.affine))
    return turned.shape, turned.affine


def oriented(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """A volume turned, without resampling, to rows to posterior, columns to the patient's left and slices upwards.

    Args:
        volume: The voxels as stored, (I, J, K) or (I, J, K, C).
        affine: The affine, (4, 4), from voxel to right, anterior, superior in mm. An oblique one is rounded to the
            nearest axes.

    Returns:
        The voxels, (H, W, D) or (H, W, D, C), as a view where that is possible.
    """
    turned: NDArray[Any] = nib.apply_orientation(volume, turn_of(affine))
    return turned


def turn_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nibabel's orientation transform from a volume as stored to the axes of ``AFFINE``."""
    turn: NDArray[np.float64] = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(AFFINE))
    return turn


def refuse_faults(items: Iterable[Mapping[str, Any]], *, voxels: bool = False) -> None:
    """Refuse volumes that the networks cannot read, with all errors in one message.

    Args:
        items: "image" is the path of a NIfTI file; "label", if given, that of its label.
        voxels: Also read the voxels.

    Raises:
        PipelineError: An image or label is refused. The message has a line for each, or for each error of many.
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
            if voxels and "label" in item and (fault := label_fault(read_voxels(Path(item["label"])))):
                faults.append((str(item["label"]), fault))
        except PipelineError as error:
            label = f"{item.get('label')}: "
            subject = label if str(error).startswith(label) else f"{image}: "
            faults.append((subject.removesuffix(": "), str(error).removeprefix(subject)))
    if faults:
        raise PipelineError(fault_lines(faults))


def voxel_fault(voxels: NDArray[Any]) -> str:
    """The reason why an image volume shows no head; empty where it shows one.

    Args:
        voxels: The image volume, of any shape.
    """
    odd = voxels.size - int(np.isfinite(voxels).sum())
    if odd:
        return f"{odd} of {voxels.size} voxels are NaN or Inf. Replace them, with 0 outside of the head"
    if voxels.max() <= 0:
        lift = " Add an offset, so that air is 0" if voxels.min() < 0 else " Check the volume"
        return f"no voxel is above 0, and the head is what is brighter than a tenth of the maximum.{lift}"
    return ""


def label_fault(voxels: NDArray[Any]) -> str:
    """The reason why a volume is not a label; empty where it holds only 0 and one positive value for the lesion.

    Args:
        voxels: The label volume, of any shape.
    """
    top = voxels.max()
    if np.isfinite(top) and top >= 0 and ((voxels == 0) | (voxels == top)).all():
        return ""
    values = np.unique(voxels)
    first = ", ".join(f"{value:g}" for value in values[:5])
    return f"voxel values {first}{', ...' if len(values) > 5 else ''} (expected 0 and one other). Binarise the label."
