"""Segment one FLAIR image: the mask goes to a file, the volume to the terminal. Research only.

    python your_own_flair.py flair.nii.gz mask.nii.gz

The image may be NIfTI, MHA or NRRD, a DICOM folder, or a folder with the slices of one patient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib

import pipeline


def main() -> None:
    """Read the image, write the mask, print the volume."""
    parser = argparse.ArgumentParser(description="Segment the FLAIR abnormality in one image.")
    parser.add_argument("image", type=Path, help="FLAIR, as a file or a folder")
    parser.add_argument("mask", type=Path, help="NIfTI file to write")
    parser.add_argument("--bundle", action="append", help="network, such as basic_unet (default: three, averaged)")
    args = parser.parse_args()

    # Each network takes seconds to load. For many images, load them once and call predict for each image.
    predictor = pipeline.Predictor(args.bundle) if args.bundle else pipeline.Predictor()
    found = predictor.predict(args.image)

    # found.mask, found.probability and found.affine lie on the grid of the image.
    nib.save(nib.Nifti1Image(found.mask, found.affine), args.mask)

    voxels = int(found.mask.sum())
    size = "unknown, the image has no voxel size" if found.volume_ml is None else f"{found.volume_ml:.2f} ml"
    print(f"{args.mask}: {voxels} voxels, volume {size}")


if __name__ == "__main__":
    try:
        main()
    except pipeline.PipelineError as error:  # a fault that the user can mend, such as an unreadable image
        raise SystemExit(f"error: {error}") from None
