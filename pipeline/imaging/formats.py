"""Read volume files of several formats, and join sequences in separate files, as one NIfTI image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import CHANNELS
from pipeline.scripts.volumes import (
    AFFINE,
    MAX_VALUES,
    NO_ORIENTATION,
    affine_mm,
    open_nifti,
    read_voxels,
    tells_orientation,
)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *_ITK_READERS)
"""Suffixes of volume files, in lower case."""
MIN_COVER = 0.95
"""Share of the head that T1 must cover, else FLAIR is used instead. Only T1 of half a head was measured."""
LPS = np.diag([-1.0, -1, 1, 1])
"""Converts between ITK or DICOM axes, to left and posterior, and NIfTI axes, to right and anterior."""


def is_volume_name(name: str) -> bool:
    """Whether a file name has the suffix of a volume, in upper or lower case."""
    return name.lower().endswith(VOLUME_SUFFIXES)


def stem_of(name: str) -> str:
    """A volume file's name without its suffix, such as ``sub-01_FLAIR`` of ``sub-01_FLAIR.nii.gz``."""
    found = next((end for end in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if name.lower().endswith(end)), "")
    return name[: len(name) - len(found)]


def case_of(stem: str) -> str:
    """The name ``X`` of an image ``X_image``, in upper or lower case. Any other name is returned as it is."""
    return stem[: -len("_image")] if stem.lower().endswith("_image") else stem


def read_volume(path: Path) -> nib.Nifti1Image:
    """A volume file as a NIfTI image, with voxels as stored and an affine to right, anterior, superior.

    Args:
        path: A file in a format of ``VOLUME_SUFFIXES``, of shape (I, J, K) or (I, J, K, C).

    Raises:
        PipelineError: The file is missing, damaged, too large, or not a volume.
    """
    if not is_volume_name(path.name):
        raise PipelineError(f"{path}: not a volume by its name (expected {', '.join(VOLUME_SUFFIXES)}). Convert it.")
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        image, voxels = open_nifti(path), read_voxels(path)
        if voxels.ndim == 5 and voxels.shape[3] == 1:  # ITK writes channels as the fifth axis, after time
            voxels = voxels[..., 0, :]
        return nib.Nifti1Image(voxels, image.affine, image.header)
    return _of_itk(_read_itk(path))


def _read_itk(path: Path) -> Any:
    """The SimpleITK image in a file that ITK reads."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_ITK_READERS[path.suffix.lower()])
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Check the path.")
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if reader.GetDimension() != 3:
            raise PipelineError(f"{path}: {reader.GetDimension()} dimensions (expected 3). Give one volume.")
        if 0 in size:
            raise PipelineError(f"{path}: holds no voxel. Replace the file.")
        if np.prod(size) * reader.GetNumberOfComponents() > MAX_VALUES:
            raise PipelineError(
                f"{path}: the header claims {' x '.join(map(str, size))} voxels (expected at most {MAX_VALUES}). "
                "Replace the file, or crop or resample the volume."
            )
        found = reader.Execute()
    except RuntimeError as error:
        cause = re.sub(r"\w+\(0x[0-9a-f]+\): ", "", str(error).rpartition("ERROR: ")[2])  # an address in memory
        raise PipelineError(f"{path}: no readable volume ({shown(cause)}). Export or copy it again.") from error
    return found


def _of_itk(image: Any) -> nib.Nifti1Image:
    """A SimpleITK image, (I, J, K) or (I, J, K, C), as NIfTI. Its unit is unknown where nobody has set a place."""
    import SimpleITK

    if image.GetDimension() != 3:
        raise PipelineError(f"a SimpleITK image of {image.GetDimension()} dimensions (expected 3). Give one volume.")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = np.moveaxis(SimpleITK.GetArrayFromImage(image), (0, 1, 2), (2, 1, 0))
    return _nifti(voxels, LPS @ affine, "unknown" if np.array_equal(affine, np.eye(4)) else "mm")


def join_sequences(flair: Path, pre: Path | None, post: Path | None) -> tuple[nib.Nifti1Image, list[str]]:
    """FLAIR and T1 from separate files as one volume on the grid of FLAIR.

    T1 is interpolated linearly onto the grid of FLAIR by the affines of the files. The images are not registered. FLAIR
    takes the place of a missing T1, as in the published data. It also replaces a T1 that covers too little of the head.

    Args:
        flair: The FLAIR file, (I, J, K). Without T1 files, it may also hold all three sequences, (I, J, K, 3).
        pre: The pre-contrast T1 file, on any grid; None without one.
        post: The post-contrast T1 file, on any grid; None without one.

    Returns:
        The volume, (I, J, K, 3) float32, as pre-contrast, FLAIR, post-contrast, and a line of text for each T1 that
        covers too little. Without T1 files, the volume is that of the FLAIR file.

    Raises:
        PipelineError: A file cannot be read, holds several volumes, or a T1 does not overlap FLAIR.
    """
    if not pre and not post:
        return _checked(flair, "FLAIR, (I, J, K), or pre-contrast, FLAIR, post-contrast, (I, J, K, 3)", ((), (3,))), []
    image = _checked(flair, "one sequence, (I, J, K)")
    own = image.get_fdata(dtype=np.float32)
    channels, remarks = [own] * len(CHANNELS), []
    for number, path in ((0, pre), (2, post)):
        if path:
            moved, covered = _on_grid(path, image, flair)
            if covered >= MIN_COVER:
                channels[number] = moved
            else:
                remarks.append(
                    f"{CHANNELS[number]} T1 covers {100 * covered:.0f} % of the head in FLAIR (expected at least "
                    f"{100 * MIN_COVER:.0f} %): FLAIR is used instead. Leave T1 out, or give one of the whole head"
                )
    joined = nib.Nifti1Image(np.stack(channels, axis=-1), image.affine)
    joined.header.set_xyzt_units(image.header.get_xyzt_units()[0])
    return joined, remarks


def _checked(path: Path, expected: str, channels: Sequence[tuple[int, ...]] = ((),)) -> nib.Nifti1Image:
    """A volume without NaN and Inf. ``channels`` are the shapes that may follow (I, J, K); by default one sequence."""
    image = read_volume(path)
    if image.shape[3:] == (1,):
        image = image.slicer[..., 0]
    if len(image.shape) < 3 or image.shape[3:] not in channels:
        raise PipelineError(f"{path}: shape {image.shape} (expected {expected}). Split the file.")
    if not np.isfinite(image.dataobj).all():
        raise PipelineError(f"{path}: NaN or Inf among the voxels. Replace them, with 0 outside of the head.")
    return image


def _on_grid(path: Path, grid: nib.Nifti1Image, flair: Path) -> tuple[NDArray[np.float32], float]:
    """A T1 on the grid of FLAIR, and the share of the head in FLAIR that it covers."""
    image = _checked(path, "one sequence, (I, J, K)")
    moved = nibabel.processing.resample_from_to(
        _nifti(np.asarray(image.dataobj), affine_mm(image), "mm"),
        (grid.shape, affine_mm(grid)),
        order=1,
        mode="grid-constant",
    )
    voxels: NDArray[np.float32] = moved.get_fdata(dtype=np.float32)
    if not voxels.any():
        raise PipelineError(
            f"{path}: by its affine it lies outside of {flair.name}. Check that both are of one patient and one scan."
        )
    return voxels, _cover(image, grid)


def _cover(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> float:
    """The share of the head in FLAIR, which is ``grid``, that lies inside another volume."""
    own = np.asarray(grid.dataobj)
    head = own >= 0.1 * min(own.max(), 4 * np.percentile(own[::4], 99.5))  # as in the bundles' configs
    to_other = (np.linalg.inv(affine_mm(image)) @ affine_mm(grid)).astype(np.float32)
    along = [axis.astype(np.float32) for axis in np.ogrid[tuple(map(slice, grid.shape))]]
    inside = head.copy()
    for (*steps, start), size in zip(to_other[:3], image.shape, strict=True):
        place = start + sum(step * axis for step, axis in zip(steps, along, strict=True))
        inside &= (place > -0.5) & (place < size - 0.5)  # a voxel extends half its size beyond its center
    return float(inside.sum() / max(1, head.sum()))


def as_nifti(image: Any, affine: NDArray[np.floating[Any]] | None = None) -> nib.Nifti1Image:
    """A NIfTI image of a volume that is a file, an image object, a tensor or an array.

    Args:
        image: The path of a file in a format of ``VOLUME_SUFFIXES``, a nibabel or SimpleITK image, a MONAI MetaTensor
            (C, I, J, K), a tensor (I, J, K), or an array (I, J, K) or (I, J, K, 3).
        affine: (4, 4), from voxel to right, anterior, superior in mm, for an array or tensor; None for the affine of
            the tensor, or ``AFFINE`` if it has none. An identity that MONAI sets itself, without a file, counts as
            none.

    Raises:
        PipelineError: The file cannot be read, a NIfTI header gives no orientation, the image has another number of
            dimensions, or an affine is given beside the image's own.
        TypeError: The image is of another type.
    """
    refuse_second_affine(image, affine)
    if isinstance(image, (str, Path)):
        return read_volume(Path(image))
    if isinstance(image, nib.spatialimages.SpatialImage):
        if isinstance(image, nib.Nifti1Pair) and not tells_orientation(image):
            raise PipelineError(f"a NIfTI image: {NO_ORIENTATION}")
        units = getattr(image.header, "get_xyzt_units", lambda: ("unknown", "unknown"))
        return _nifti(np.asarray(image.dataobj), image.affine, units()[0])
    if _is_itk(image):
        return _of_itk(image)
    if hasattr(image, "detach"):  # a tensor
        return _of_tensor(image, affine)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{type(image).__name__} (expected a path, an image of nibabel or SimpleITK, or an array)")
    if affine is None:
        return _nifti(image, AFFINE, "unknown")
    return _nifti(image, np.asarray(affine, np.float64), "mm")


def refuse_second_affine(image: Any, affine: Any) -> None:
    """Refuse an affine beside an image that has its own: a file, or an image of nibabel or SimpleITK."""
    if affine is not None and (isinstance(image, (str, Path, nib.spatialimages.SpatialImage)) or _is_itk(image)):
        raise PipelineError(f"affine given beside a {type(image).__name__}, which has its own. Leave it out.")


def _is_itk(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "SimpleITK"


def _of_tensor(image: Any, affine: NDArray[np.floating[Any]] | None) -> nib.Nifti1Image:
    voxels = image.detach().cpu()
    voxels = (voxels.float() if voxels.is_floating_point() else voxels).numpy()  # NumPy lacks bfloat16
    voxels = np.moveaxis(voxels, 0, -1) if voxels.ndim > 3 else voxels
    meta = getattr(image, "meta", {})
    own = image.affine.cpu().numpy() if affine is None and meta else np.eye(4)
    if affine is not None or ("original_affine" not in meta and np.array_equal(own, np.eye(4))):
        return as_nifti(voxels, affine)
    own = LPS @ own if meta.get("space") == "LPS" else own
    space = int(meta.get("xyzt_units", 2)) % 8  # only NIfTI headers have a unit; other files are in mm
    return _nifti(voxels, own, str(nib.nifti1.unit_codes.label[space]) if space <= 3 else "unknown")


def _nifti(voxels: NDArray[Any], affine: NDArray[np.float64], unit: str) -> nib.Nifti1Image:
    """A NIfTI image with a number type that other programs read: integers of up to 16 bits, else float32."""
    if voxels.dtype.kind not in "buif":
        raise PipelineError(f"voxels of type {voxels.dtype} (expected numbers). Convert the volume to gray.")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise PipelineError(f"affine {affine.tolist()} (expected 4 rows of 4 numbers, invertible). Correct it.")
    plain = voxels.dtype.kind in "ui" and voxels.dtype.itemsize <= 2
    found = nib.Nifti1Image(voxels if plain else voxels.astype(np.float32), affine)
    found.header.set_xyzt_units(unit)
    return found
