"""DICOM series and ITK files that tests make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipeline.imaging.dicom import Series, find_series

STUDY = "1.2.826.0.1.3680043.8.498.1"
PLACES = np.array([[0, -0.9, 0, 110.0], [-0.9, 0, 0, 120], [0, 0, 5, -30], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, -5.0, 30], [0, -0.9, 0, 110], [-0.9, 0, 0, 90], [0, 0, 0, 1]])
"""(row, column, slice) to right, anterior, superior in mm, of axial and of sagittal slices."""


def write_series(
    folder: Path,
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    description: str = "AX FLAIR",
    number: int = 3,
    study: str = STUDY,
    **fields: Any,
) -> list[Path]:
    """Write a volume as an MR series with one file per slice.

    Args:
        folder: The folder, which is made if it does not exist.
        volume: (rows, columns, slices), whole numbers.
        affine: (4, 4), (row, column, slice) to right, anterior, superior in mm.
        description: SeriesDescription.
        number: SeriesNumber.
        study: StudyInstanceUID.
        **fields: Other fields of every header, by keyword.

    Returns:
        The files, in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, up = _place(affine), (np.diag([-1.0, -1, 1, 1]) @ affine)[:3, 2]
    series, frame, paths = generate_uid(), generate_uid(), []
    for z in range(volume.shape[2]):
        path = folder / f"{number:03}_{z + 1:04}.dcm"
        header = _header(path, MRImageStorage, volume, study)
        header.SeriesInstanceUID, header.FrameOfReferenceUID = series, frame
        header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = description, number, z + 1
        header.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        header.PixelSpacing, header.SliceThickness = place.spacing, place.thickness
        header.ImageOrientationPatient = place.turn
        header.ImagePositionPatient = [float(value) for value in place.origin + z * up]
        for name, value in fields.items():
            setattr(header, name, value)
        header.PixelData = np.ascontiguousarray(volume[:, :, z]).astype("<u2").tobytes()
        pydicom.dcmwrite(path, header, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    description: str = "AX FLAIR",
    order: Sequence[int] | None = None,
    per_frame: bool = False,
    inversion: float = 2500.0,
    echo: float = 120.0,
) -> Path:
    """Write a volume as one enhanced MR file of many frames.

    Args:
        path: The file to write.
        volume: (rows, columns, slices), whole numbers.
        affine: (4, 4), (row, column, slice) to right, anterior, superior in mm.
        description: SeriesDescription.
        order: The slices in the order of the frames; from the first to the last by default.
        per_frame: Whether each frame names orientation and pixel spacing, as some scanners write, or all share them.
        inversion: Inversion time, ms.
        echo: Effective echo time, ms.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place, up = _place(affine), (np.diag([-1.0, -1, 1, 1]) @ affine)[:3, 2]
    order = order or range(volume.shape[2])
    header = _header(path, EnhancedMRImageStorage, volume, STUDY)
    header.SeriesInstanceUID, header.FrameOfReferenceUID = generate_uid(), generate_uid()
    header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = description, 3, 1
    header.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.NumberOfFrames, header.ContentDate, header.ContentTime = len(order), "20200101", "120000"
    organization = generate_uid()
    header.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    header.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=tag, FunctionalGroupPointer=0x00209111)
        for tag in (0x00209056, 0x00209057)  # StackID, InStackPositionNumber
    ]
    geometry = {
        "PlaneOrientationSequence": [_item(ImageOrientationPatient=place.turn)],
        "PixelMeasuresSequence": [
            _item(PixelSpacing=place.spacing, SliceThickness=place.thickness, SpacingBetweenSlices=place.thickness)
        ],
    }
    header.SharedFunctionalGroupsSequence = [
        _item(
            MRModifierSequence=[_item(InversionRecovery="YES", InversionTimes=inversion)],
            MREchoSequence=[_item(EffectiveEchoTime=echo)],
            PixelValueTransformationSequence=[_item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")],
            **({} if per_frame else geometry),
        )
    ]
    header.PerFrameFunctionalGroupsSequence = [
        _item(
            FrameContentSequence=[_item(StackID="1", InStackPositionNumber=z + 1, DimensionIndexValues=[1, z + 1])],
            PlanePositionSequence=[_item(ImagePositionPatient=[float(value) for value in place.origin + z * up])],
            **(geometry if per_frame else {}),
        )
        for z in order
    ]
    header.PixelData = np.ascontiguousarray(volume.transpose(2, 0, 1)[[*order]]).astype("<u2").tobytes()
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return path


class _Place(NamedTuple):
    spacing: list[float]
    thickness: float
    turn: list[float]
    origin: NDArray[np.float64]


def _place(affine: NDArray[np.float64]) -> _Place:
    """The position of a volume in the terms of DICOM."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    down, along, up = (lps[:3, axis] for axis in range(3))
    lengths = [float(np.linalg.norm(axis)) for axis in (down, along, up)]
    turn = [float(value) for value in (*(along / lengths[1]), *(down / lengths[0]))]
    return _Place(lengths[:2], lengths[2], turn, lps[:3, 3])


def _item(**fields: Any) -> Dataset:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def _header(path: Path, kind: UID, volume: NDArray[Any], study: str) -> FileDataset:
    """The header fields of every MR file of a study."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = "Secret^Name", "4711", "", ""
    header.StudyInstanceUID, header.Modality = UID(study), "MR"
    header.StudyID, header.StudyDate, header.StudyTime, header.AccessionNumber = "1", "20200101", "120000", ""
    header.ReferringPhysicianName, header.Manufacturer, header.PositionReferenceIndicator = "", "Phantom", ""
    header.Rows, header.Columns = volume.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    return header


def save_itk(path: Path, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """Write ``voxels`` and ``affine``, as NIfTI has them, with ITK."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def one(folder: Path) -> Series:
    """The only series in a folder."""
    (series,) = find_series(sorted(folder.iterdir())).series
    return series


def edit(path: Path, change: Callable[[pydicom.Dataset], object]) -> None:
    """Change the header of a file."""
    header = pydicom.dcmread(path)
    change(header)
    header.save_as(path)
