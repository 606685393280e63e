"""DICOM series and ITK files that tests make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(
    folder: Path,
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    description: str = "AX FLAIR",
    number: int = 3,
    study: str = "1.2.826.0.1.3680043.8.498.1",
    **fields: Any,
) -> list[Path]:
    """Write a volume as an MR series, a file a slice.

    Args:
        folder: The folder, made where it is missing.
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
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    down, along, up = (lps[:3, axis] for axis in range(3))
    series, frame, paths = generate_uid(), generate_uid(), []
    for z in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:03}_{z + 1:04}.dcm"
        header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = "Secret^Name", "4711", "", ""
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = UID(study), series, frame
        header.StudyID, header.StudyDate, header.StudyTime, header.AccessionNumber = "1", "20200101", "120000", ""
        header.ReferringPhysicianName, header.Manufacturer, header.PositionReferenceIndicator = "", "Phantom", ""
        header.Modality, header.SeriesDescription, header.SeriesNumber = "MR", description, number
        header.InstanceNumber = z + 1
        header.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        header.Rows, header.Columns = volume.shape[:2]
        header.PixelSpacing = [float(np.linalg.norm(down)), float(np.linalg.norm(along))]
        header.SliceThickness = float(np.linalg.norm(up))
        turn = [*(along / np.linalg.norm(along)), *(down / np.linalg.norm(down))]
        header.ImageOrientationPatient = [float(value) for value in turn]
        header.ImagePositionPatient = [float(value) for value in lps[:3, 3] + z * up]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        for name, value in fields.items():
            setattr(header, name, value)
        header.PixelData = np.ascontiguousarray(volume[:, :, z]).astype("<u2").tobytes()
        pydicom.dcmwrite(path, header, enforce_file_format=True)
        paths.append(path)
    return paths


def save_itk(path: Path, voxels: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """Write by ITK what NIfTI would hold as ``voxels`` and ``affine``."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return path
