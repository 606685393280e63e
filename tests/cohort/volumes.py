"""Phantoms as image and mask volumes, in the layouts in which cohorts are shared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from pipeline.cohort.anatomy import make_patient
from pipeline.scripts.volumes import AFFINE

SPACING = (0.9, 0.8, 4.0)
"""Distances of rows, columns and slices, in mm."""
PRE, FLAIR, POST = 0, 1, 2


def phantom(number: int = 0, *, size: int = 32, slices: int = 6) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, D, 3) and mask (H, W, D), 0 and 1, of a phantom in the networks' orientation."""
    image, mask = make_patient(number, size=size, slices=slices, seed=5)
    return image.transpose(1, 2, 0, 3), (mask.transpose(1, 2, 0) > 0).astype(np.uint8)


def save(
    path: Path,
    voxels: NDArray[Any],
    orientation: str = "RAS",
    spacing: Sequence[float] = SPACING,
    shift: float = 0,
) -> Path:
    """Write a volume, given in the networks' orientation, in another orientation and with this spacing."""
    affine = AFFINE @ np.diag([*spacing, 1])
    affine[:3, 3] = (11 + shift, -7, 5)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    image = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        image.to_filename(path)
    else:
        write_itk(path, np.asarray(image.dataobj), image.affine)
    return path


def write_itk(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    import SimpleITK

    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))


def pairs(root: Path, patients: int = 4, orientation: str = "RAS", **options: Any) -> Path:
    """Only FLAIR and its mask, ``images/P1.nii.gz`` and ``labels/P1.nii.gz``."""
    for number in range(patients):
        image, mask = phantom(number, **options)
        save(root / "images" / f"P{number + 1}.nii.gz", image[..., FLAIR].astype(np.int16), orientation)
        save(root / "labels" / f"P{number + 1}.nii.gz", mask, orientation)
    return root


def brats(root: Path, patients: int = 2, values: Sequence[int] = (1, 2, 4)) -> Path:
    """Folders as in BraTS. The mask holds several values, by slice."""
    for number in range(patients):
        name = f"BraTS-GLI-{number:05d}-000"
        image, mask = phantom(number)
        for end, channel in (("t1n", PRE), ("t2f", FLAIR), ("t1c", POST), ("t2w", FLAIR)):
            save(root / name / f"{name}-{end}.nii.gz", image[..., channel], "LPS")
        kinds = np.take(values, np.arange(mask.shape[2]) % len(values)).astype(np.uint8)
        save(root / name / f"{name}-seg.nii.gz", mask * kinds, "LPS")
    return root


def bids(root: Path, patients: int = 2) -> Path:
    """BIDS: raw FLAIR and T1, masks of lesion and brain in ``derivatives``."""
    for number in range(patients):
        image, mask = phantom(number)
        name = f"sub-{number + 1:02d}"
        save(root / name / "anat" / f"{name}_FLAIR.nii.gz", image[..., FLAIR])
        save(root / name / "anat" / f"{name}_T1w.nii.gz", image[..., PRE])
        place = root / "derivatives" / "manual" / name / "anat"
        save(place / f"{name}_label-lesion_mask.nii.gz", mask, "PIL")
        save(place / f"{name}_desc-brain_mask.nii.gz", np.ones_like(mask))
    write_json(root / "dataset_description.json", {"Name": "phantoms"})
    return root


def nnunet(root: Path, patients: int = 2, names: Mapping[str, str] | None = None) -> Path:
    """nnU-Net raw: ``imagesTr/C_0000.nii.gz`` and so on, ``labelsTr/C.nii.gz``, a test image without label."""
    for number in range(patients):
        image, mask = phantom(number)
        save(root / "imagesTr" / f"C{number}_0000.nii.gz", image[..., FLAIR])
        save(root / "imagesTr" / f"C{number}_0001.nii.gz", image[..., POST])
        save(root / "imagesTr" / f"C{number}_0002.nii.gz", image[..., PRE])
        save(root / "labelsTr" / f"C{number}.nii.gz", mask)
    save(root / "imagesTs" / "C9_0000.nii.gz", phantom(9)[0][..., FLAIR])
    names = {"0": "FLAIR", "1": "T1Gd", "2": "T2"} if names is None else names
    if names:
        write_json(
            root / "dataset.json", {"channel_names": names, "labels": {"background": 0}, "file_ending": ".nii.gz"}
        )
    return root


def decathlon(root: Path, patients: int = 2) -> Path:
    """A task of the Decathlon: images of four channels, a list of training pairs and one of test images."""
    training = []
    for number in range(patients):
        image, mask = phantom(number)
        stacked = np.stack([image[..., FLAIR], image[..., PRE], image[..., POST], image[..., FLAIR] // 2], axis=-1)
        save(root / "imagesTr" / f"BRATS_{number:03d}.nii.gz", stacked)
        save(root / "labelsTr" / f"BRATS_{number:03d}.nii.gz", mask)
        training.append(
            {"image": f"./imagesTr/BRATS_{number:03d}.nii.gz", "label": f"./labelsTr/BRATS_{number:03d}.nii.gz"}
        )
    save(root / "imagesTs" / "BRATS_900.nii.gz", stacked)
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    write_json(
        root / "dataset.json",
        {"modality": modality, "training": training, "test": ["./imagesTs/BRATS_900.nii.gz"]},
    )
    return root


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
