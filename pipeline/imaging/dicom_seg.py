"""Write masks as DICOM SEG files that refer to their DICOM series."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.imaging.dicom import REVERSED, Series, grid_of, header_errors
from pipeline.imaging.formats import LPS
from pipeline.scripts.faults import shown
from pipeline.scripts.files import write_durably

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset


def write_segmentation(path: Path, mask: NDArray[Any], affine: NDArray[np.float64], series: Series) -> None:
    """Write a mask as a DICOM SEG file that refers to the series it was made from.

    The patient's identity is copied from the series into the file, because DICOM requires it.

    Args:
        path: The file to write, whose name ends in ``.dcm``.
        mask: (I, J, K), values 0 and 1, on the grid of the converted series.
        affine: (4, 4), from voxel of the mask to right, anterior, superior in mm.
        series: The DICOM series that the mask was made from.

    Raises:
        PipelineError: The headers lack something that DICOM SEG needs. This can happen with anonymised series.
    """
    try:
        data = _segmentation(mask, affine, series)
    except header_errors() as error:
        raise PipelineError(
            f"series {series.number}: no DICOM SEG can be made of its headers ({shown(error)}). Leave --dicom-seg out."
        ) from error
    write_durably(path, data)


def _segmentation(mask: NDArray[Any], affine: NDArray[np.float64], series: Series) -> bytes:
    """The content of the DICOM SEG file."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    from pipeline import __version__

    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    for source in sources:
        _share_groups(source)
    own = grid_of(series)
    grid = hd.VolumeGeometry(LPS @ own.affine[:, REVERSED], own.shape[::-1], coordinate_system="PATIENT")
    volume = hd.Volume(mask.astype(np.uint8), LPS @ affine, coordinate_system="PATIENT").match_geometry(grid, tol=0.01)
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="FLAIR abnormality",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="lgg-flair-pipeline", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=volume,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=int(series.number or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="lgg-flair-pipeline",
        manufacturer_model_name="lgg-flair-pipeline",
        software_versions=__version__,
        device_serial_number="0",
        series_description="FLAIR abnormality, automatic, research only",
        omit_empty_frames=bool(mask.any()),
    )
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def _share_groups(header: Dataset) -> None:
    """Copy values of an enhanced file's first frame to the group of all frames, where highdicom looks for them."""
    if "PerFrameFunctionalGroupsSequence" in header:
        shared, frame = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
        for group in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if group not in shared and group in frame:
                shared[group] = frame[group]
