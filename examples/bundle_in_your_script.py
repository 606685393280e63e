"""Use a bundle of this project in a MONAI program of your own. Only MONAI is imported. Research only.

Get the folder of the bundle first:

    lgg-flair pack basic_unet
    unzip dist/basic_unet_*.zip
    python bundle_in_your_script.py basic_unet flair.nii.gz mask.nii.gz

A config can run any code. Use bundles from people whom you trust.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, load


def segment(bundle: Path, image: Path) -> tuple[np.ndarray, np.ndarray]:
    """Segment one image with the network and the transforms of a bundle.

    Args:
        bundle: The folder of the bundle.
        image: FLAIR as NIfTI, (H, W, D), or with channels pre-contrast, FLAIR, post-contrast, (H, W, D, 3).

    Returns:
        The mask, (H, W, D) uint8, and the affine of the image, (4, 4).
    """
    # The network with its weights.
    network = load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference").eval()

    # What happens before and after the network, as inference.json says. Without "saving", nothing is written.
    config = ConfigParser()
    config.read_config(bundle / "configs" / "inference.json")
    config["saving"] = []
    preprocessing, inferer, postprocessing = (
        config.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
    )

    data = preprocessing({"image": str(image)})
    with torch.inference_mode():
        data["pred"] = inferer(data["image"][None], network)[0]
    mask = postprocessing(data)["pred"][0]
    return np.asarray(mask, dtype=np.uint8), nib.load(image).affine


def main() -> None:
    """Read the image, write the mask."""
    parser = argparse.ArgumentParser(description="Segment one FLAIR image with a MONAI bundle.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle, such as basic_unet")
    parser.add_argument("image", type=Path, help="FLAIR as NIfTI")
    parser.add_argument("mask", type=Path, help="NIfTI file to write")
    args = parser.parse_args()
    mask, affine = segment(args.bundle.resolve(), args.image)
    nib.save(nib.Nifti1Image(mask, affine), args.mask)
    print(f"{args.mask}: {int(mask.sum())} voxels")


if __name__ == "__main__":
    main()
