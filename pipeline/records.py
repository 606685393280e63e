"""Frozen records that the rooms of the pipeline hand to one another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""Channel order of a slice and of a volume (Buda et al., Computers in Biology and Medicine 109, 2019)."""

SECTIONS = ("training", "validation", "test")
"""Sections of a Decathlon datalist, each a key of ``manifest.json``."""


@dataclass(frozen=True)
class SliceFile:
    """One TIFF file of the source folder, known by its name alone.

    Args:
        path: relative to the source folder.
        patient: patient id, the file name up to the slice number.
        number: slice number, an integer (``_2`` before ``_10``).
        kind: image or mask.
    """

    path: PurePosixPath
    patient: str
    number: int
    kind: Literal["image", "mask"]


@dataclass(frozen=True)
class PatientRecord:
    """What the manifest tells of one patient.

    Args:
        patient: patient id.
        shape: (H, W, D) of the volume in voxels.
        lesion_voxels: voxels of the label that are not 0.
        missing_sequences: names of sequences that repeat another channel (the publishers replaced a missing
            sequence by FLAIR), or pairs ``a=b`` where FLAIR is not one of the two.
        mask_values: grey values found in the source masks, ({0, 255} as published, {0, 1} accepted).
        warnings: what is odd but used.
        sources: path relative to the source folder -> SHA-256.
        image_sha256: SHA-256 of the image volume, empty where none was built.
        label_sha256: SHA-256 of the label volume, likewise.
    """

    patient: str
    shape: tuple[int, int, int]
    lesion_voxels: int
    missing_sequences: tuple[str, ...] = ()
    mask_values: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    image_sha256: str = ""
    label_sha256: str = ""


@dataclass(frozen=True)
class VolumeScore:
    """Agreement of one predicted volume with its truth.

    Args:
        patient: patient id.
        dsc: Dice similarity coefficient, 0 to 1; None where it is not defined (truth and prediction empty).
        hd95_px: 95th percentile of the symmetric surface distance in voxels; None where either surface is empty.
        sensitivity: TP / (TP + FN); None where the truth is empty.
        precision: TP / (TP + FP); None where the prediction is empty.
        tp_voxels: voxels in both.
        fp_voxels: voxels of the prediction alone.
        fn_voxels: voxels of the truth alone.
        reliability: for each tenth of probability its voxels, the sum of their probabilities and the lesion voxels
            among them; empty where no probability is known.
        agreement: mean DSC between the masks of networks and flips (``metrics.pass_agreement``); None where it was not
            asked for, or no pass marks a voxel.
    """

    patient: str
    dsc: float | None
    hd95_px: float | None
    sensitivity: float | None
    precision: float | None
    tp_voxels: int
    fp_voxels: int
    fn_voxels: int
    reliability: tuple[tuple[int, float, int], ...] = ()
    agreement: float | None = None

    @property
    def lesion_voxels(self) -> int:
        """Voxels of the truth."""
        return self.tp_voxels + self.fn_voxels

    @property
    def predicted_voxels(self) -> int:
        """Voxels of the prediction."""
        return self.tp_voxels + self.fp_voxels
