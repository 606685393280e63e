"""What the form of an input costs in DSC: one patient in every form of file, and all patients in other forms of scan.

    python -m benchmarks.inputs MANIFEST [--split validation] [--bundle basic_unet]

The first patient of the section is predicted from every form of file. The mask is compared with that of the volume as
stored. For all orientations, the masks of the bundle's own config are compared too.

For all patients, this prints the mean DSC against the truth with three sequences, with FLAIR only, and with T1 that
covers half of the head. The first two are also measured with the skull removed by a simple rule (``without_skull``).
FLAIR only is also measured in slices 1 mm apart, and in sagittal and coronal slices 4 mm apart (``acquired``). The
truth is then brought to the same grid.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce

from pipeline.cohort.inputs import build_one, build_volume, name_sequences
from pipeline.cohort.manifest import read_manifest, select
from pipeline.files import named_path
from pipeline.imaging.nifti import load_image, load_label
from pipeline.model.predictor import Predictor
from pipeline.scripts.volumes import AFFINE, oriented
from tests.imaging.series import save_itk, write_series

PLACE = np.array([[0, -0.9, 0, 110.0], [-0.9, 0, 0, 120], [0, 0, 4, -60], [0, 0, 0, 1]])
"""An affine as of a scanner, because the published volumes do not have their spacing."""
TILT = np.array([[0.98, 0, 0.2, 0], [0, 1, 0, 0], [-0.2, 0, 0.98, 0], [0, 0, 0, 1]])


def dsc(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    """The Dice similarity coefficient of two masks."""
    return float(2 * (one & two).sum() / max(1, one.sum() + two.sum()))


def without_skull(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A volume (H, W, D, 3) with 0 outside the brain, which a simple rule finds.

    The rule takes FLAIR above half of Otsu's threshold, opens it by 7 pixels within each slice, keeps the largest
    component, closes it and fills its holes.
    """
    head = image[..., 1] > threshold_otsu(image[..., 1]) / 2
    disk = np.hypot(*np.mgrid[-7:8, -7:8])[..., None] <= 7
    parts, _ = ndimage.label(ndimage.binary_erosion(head, disk))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    brain = ndimage.binary_dilation(parts == sizes.argmax(), disk)
    brain = ndimage.binary_closing(brain, disk)
    for z in range(brain.shape[2]):
        brain[..., z] = ndimage.binary_fill_holes(brain[..., z])
    return np.where(brain[..., None], image, 0).astype(np.uint8)


def acquired(volume: NDArray[np.uint8], plane: int, thickness: int) -> nib.Nifti1Image:
    """A volume as if it had been acquired in thicker slices of another plane.

    It is interpolated to voxels of 1 mm, whose values are averaged within each slice.

    Args:
        volume: The volume, (H, W, D).
        plane: 0 for sagittal, 1 for coronal, 2 for axial slices.
        thickness: The thickness of a slice in mm.
    """
    fine = nibabel.processing.resample_to_output(
        nib.Nifti1Image(volume.astype(np.float32), PLACE), (1.0, 1.0, 1.0), order=1, mode="nearest"
    )
    size = np.ones(3, dtype=int)
    size[plane] = thickness
    voxels = block_reduce(np.asarray(fine.dataobj), tuple(size), np.mean)
    affine = fine.affine @ np.diag([*size, 1])
    affine[:3, 3] += fine.affine[:3, :3] @ (size - 1) / 2
    return nib.Nifti1Image(voxels, affine)


def forms(image: NDArray[np.uint8], folder: Path) -> Iterator[tuple[str, Callable[[], Path], bool]]:
    """Each form: its name, a function that builds the NIfTI file for the networks, and whether it holds only FLAIR."""
    native = nib.Nifti1Image(image, PLACE)

    def saved(name: str, volume: nib.Nifti1Image) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(volume, path)
        return path

    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = native.as_reoriented(np.array(list(zip(axes, flips, strict=True))))
            codes = "".join(nib.aff2axcodes(turned.affine))
            yield codes, lambda turned=turned, codes=codes: saved(f"turned/{codes}_image.nii.gz", turned), False
    tilted = nib.Nifti1Image(image, TILT @ PLACE)
    yield "oblique", lambda: saved("turned/oblique_image.nii.gz", tilted), False
    flair = nib.Nifti1Image(image[..., 1], PLACE)
    yield "FLAIR NIfTI", lambda: saved("flair.nii", flair), True
    yield "FLAIR MHA", lambda: build_one(save_itk(folder / "a.mha", image[..., 1], PLACE), folder / "mha"), True
    yield "FLAIR NRRD", lambda: build_one(save_itk(folder / "a.nrrd", image[..., 1], PLACE), folder / "nrrd"), True
    write_series(folder / "dicom", image[..., 1], PLACE)
    yield "FLAIR DICOM", lambda: build_one(folder / "dicom", folder / "out"), True
    for layout, names in {
        "BraTS folder": ("brats/P-t1n.nii", "brats/P-t2f.nii", "brats/P-t1c.nii"),
        "BIDS folder": ("sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_FLAIR.nii", "sub-1/anat/sub-1_ce-gd_T1w.nii"),
    }.items():
        for channel, name in enumerate(names):
            saved(name, nib.Nifti1Image(image[..., channel], PLACE))
        top = folder / names[0].split("/")[0]
        yield layout, lambda top=top: build_one(top, folder / f"{top.name}_out"), False
    paths = []
    for channel in (0, 2):
        plain = nib.Nifti1Image(image[..., channel].astype(np.float32), PLACE)
        moved = nibabel.processing.resample_to_output(plain, (1.0, 1.0, 2.0), order=1, mode="nearest")
        paths.append(saved(f"t1_{channel}.nii", moved))

    def joined() -> Path:
        inputs = name_sequences([folder / "flair.nii"], *paths, folder / "joined")
        (source,) = inputs.sources.values()
        build_volume(source)
        return source.image

    yield "T1 of 1 x 1 x 2 mm on their own grids", joined, False


def masks_of_bundle(bundle: str, folder: Path) -> Iterator[NDArray[np.uint8]]:
    """The masks of the turned volumes by a bundle's own config, each in the orientation of the networks."""
    config = named_path(bundle, "bundles") / "configs" / "inference.json"
    options = {"config_file": config, "dataset_dir": folder / "turned", "output_dir": folder / "masks"}
    command = [sys.executable, "-m", "monai.bundle", "run"]
    subprocess.run([*command, *(f"--{key}={value}" for key, value in options.items())], check=True)
    for path in (folder / "masks").iterdir():
        mask = nib.load(path)
        yield oriented(np.asarray(mask.dataobj), mask.affine)


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description="What the form of an input costs.")
    parser.add_argument("manifest", help="folder of the manifest")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--bundle", default="basic_unet")
    args = parser.parse_args()
    predictor = Predictor(args.bundle)
    volumes = select(read_manifest(args.manifest), args.split)
    image, truth = load_image(volumes[0].image), load_label(volumes[0].label)
    whole, alone = (predictor.predict(part, PLACE).mask for part in (image, image[..., 1]))
    print(f"{args.bundle}, {volumes[0].patient}: DSC {dsc(whole, truth):.4f}, FLAIR only {dsc(alone, truth):.4f}")
    worst = 1.0
    with tempfile.TemporaryDirectory() as folder:
        for name, build, is_flair in forms(image, Path(folder)):
            found = predictor.predict(build())
            against = dsc(oriented(found.mask, found.affine), alone if is_flair else whole)
            if len(name) == 3:
                worst = min(worst, against)
            else:
                print(f"{name:<40} {against:.4f}")
        print(f"{'worst of 48 orientations':<40} {worst:.4f}")
        worst = min(dsc(mask, whole) for mask in masks_of_bundle(args.bundle, Path(folder)))
        print(f"{'worst of these and oblique, inference.json':<40} {worst:.4f}")
    rows, grids = [], {"axial, 1 mm": (2, 1), "sagittal, 4 mm": (0, 4), "coronal, 4 mm": (1, 4)}
    for volume in volumes:
        image, truth = load_image(volume.image), load_label(volume.label)
        bare = without_skull(image)
        kept = float(truth[bare[..., 1] > 0].sum() / max(1, truth.sum()))
        half = image.copy()
        half[:, :, image.shape[2] // 2 :, [0, 2]] = 0
        parts = (image, image[..., 1], half, bare, bare[..., 1])
        rows.append([*(dsc(predictor.predict(part, AFFINE).mask, truth) for part in parts), kept])
        for plane, thickness in grids.values():
            label = np.asarray(acquired(truth, plane, thickness).dataobj) > 0.5
            rows[-1].append(
                dsc(predictor.predict(acquired(image[..., 1], plane, thickness)).mask, label.astype(np.uint8))
            )
        print(volume.patient, *(f"{value:.3f}" for value in rows[-1]), flush=True)
    means = np.mean(rows, axis=0)
    print(f"{len(rows)} patients: three sequences {means[0]:.4f}, FLAIR only {means[1]:.4f}")
    print("; ".join(f"{name} {mean:.4f}" for name, mean in zip(grids, means[6:], strict=True)))
    print(f"T1 of the lower half only, 0 above it: {means[2]:.4f}")
    print(f"without skull: {means[3]:.4f} and {means[4]:.4f}; share of the lesion that the rule keeps {means[5]:.4f}")


if __name__ == "__main__":
    main()
