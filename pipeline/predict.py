"""Command line: volumes without truth + bundle(s) -> mask NIfTIs, probabilities on request, lesion volumes."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundle import add_arguments, load_bundles, versions
from pipeline.datalist import MANIFEST_NAME, read_manifest, verify_volume
from pipeline.errors import ManifestError, PipelineError, run_cli
from pipeline.files import sha256_file, write_atomically
from pipeline.slices import shown

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

IMAGE = "_image.nii.gz"
TABLE = "predictions.csv"
SUMMARY = "predictions.json"


@dataclass(frozen=True)
class Prediction:
    """What was found in one volume.

    Args:
        volume: name of it.
        lesion_voxels: voxels of the mask.
        lesion_ml: the same in ml, None where the volume's spacing is not known.
        lesion_slices: slices with a voxel of the mask.
        slices: of the volume.
        image: the file that was read.
        image_sha256: of it.
    """

    volume: str
    lesion_voxels: int
    lesion_ml: float | None
    lesion_slices: int
    slices: int
    image: str
    image_sha256: str


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict",
        description="Lesion masks of volumes without truth, by one bundle or by the mean of several. Research only.",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help="a NIfTI volume (H, W, D, 3: pre-contrast, FLAIR, post-contrast), a folder (every *_image.nii.gz below "
        "it), or a manifest: manifest.json or its folder (every patient). Rows run to posterior, columns to the "
        "patient's left, slices to superior",
    )
    add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help=f"folder for NAME_mask.nii.gz, {TABLE} and {SUMMARY}")
    parser.add_argument(
        "--probability",
        action="store_true",
        help="write NAME_probability.nii.gz as well, float32, before threshold and component rule",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every volume; write masks, table and summary.

    Raises:
        PipelineError: what the caller can mend, each with its remedy; ``run_cli`` prints it and exits with 2.
    """
    args = arguments().parse_args(argv)
    volumes = named(args.inputs)
    _check(volumes)
    _refuse_what_is_there(args.out, volumes, overwrite=args.overwrite)
    bundles = load_bundles(args.bundle, args.weights, args.backend)
    for bundle in bundles:
        print(bundle.as_trained())
    predictions, faults = predict_volumes(bundles, volumes, args.out, flips=args.tta, probabilities=args.probability)
    if not predictions:
        raise ManifestError({path: [message] for path, message in faults.items()})
    summary = {
        "bundles": [bundle.provenance() for bundle in bundles],
        "tta": args.tta,
        "backend": args.backend,
        "device": str(bundles[0].device),
        "versions": versions(args.backend),
        "volumes": [asdict(prediction) for prediction in predictions],
        "failed": faults,
    }
    write_atomically(args.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    _write_table(args.out / TABLE, predictions)
    print(table(predictions))
    print(f"Research only, not for clinical use. Masks and table: {args.out}")
    if faults:
        raise ManifestError({path: [message] for path, message in faults.items()})
    return 0


def _refuse_what_is_there(out: Path, volumes: dict[str, Path], *, overwrite: bool) -> None:
    """Keep the results of one folder about the same volumes and networks.

    Raises:
        PipelineError: results are there that may not be replaced, or ``out`` is no folder.
    """
    if out.exists() and not out.is_dir():
        raise PipelineError(f"{out}: is a file (expected a folder, or a name for a new one). Choose another --out.")
    masks = [f"{name}_{kind}.nii.gz" for name in volumes for kind in ("mask", "probability")]
    there = [out / name for name in (*masks, TABLE, SUMMARY) if (out / name).exists()]
    if there and not overwrite:
        more = f", with {len(there) - 1} more" if len(there) > 1 else ""
        raise PipelineError(f"{there[0]}: is there already{more}. Choose another --out, or pass --overwrite.")


def named(inputs: Sequence[Path]) -> dict[str, Path]:
    """The volumes that inputs stand for, by names that no two share.

    Args:
        inputs: NIfTI volumes, folders of them, manifests.

    Raises:
        PipelineError: an input with no volume in it, or two volumes of one name.
    """
    found = [pair for path in inputs for pair in _volumes(path)]
    if not found:
        raise PipelineError(f"{', '.join(map(str, inputs))}: no volume in it. Build the manifest of other slices.")
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        files = ", ".join(str(path) for name, path in found if name == twice[0])
        raise PipelineError(f"two volumes of the name {twice[0]} ({files}). Rename one, or predict them apart.")
    return dict(found)


def _volumes(path: Path) -> Iterator[tuple[str, Path]]:
    if path.name == MANIFEST_NAME or (path / MANIFEST_NAME).is_file():
        for section in read_manifest(path).sections.values():
            for volume in section:
                verify_volume(volume)
                yield volume.patient, volume.image
    elif path.is_dir():
        images = sorted(path.rglob(f"*{IMAGE}"))
        if not images:
            raise PipelineError(
                f"{path}: no *{IMAGE} below it and no {MANIFEST_NAME} in it. Name the volumes one by one, or the "
                "folder of a manifest; slices become volumes by python -m pipeline.manifest."
            )
        yield from ((image.name.removesuffix(IMAGE), image) for image in images)
    elif path.name.endswith((".nii", ".nii.gz")):
        yield path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_image"), path
    else:
        raise PipelineError(
            f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected .nii.gz, .nii, a folder of "
            "volumes, or a manifest). Check the path."
        )


def _check(volumes: dict[str, Path]) -> None:
    """Headers first: a fault in the last volume is told before the first one is predicted.

    Raises:
        ManifestError: the faults of all.
    """
    from pipeline.volumes import check_image

    faults = {}
    for path in volumes.values():
        try:
            check_image(path)
        except PipelineError as error:
            faults[str(path)] = [str(error).removeprefix(f"{path}: ")]
    if faults:
        raise ManifestError(faults)


def predict_volumes(
    bundles: Sequence[Bundle], volumes: dict[str, Path], out: Path, *, flips: bool, probabilities: bool
) -> tuple[list[Prediction], dict[str, str]]:
    """Predict volumes and write their masks; reading, network and writing of three volumes overlap.

    A volume that cannot be predicted does not keep the others from it.

    Args:
        bundles: whose probabilities are averaged; threshold and component rule are those of the first.
        volumes: name -> NIfTI image, (H, W, D, 3).
        out: folder for ``NAME_mask.nii.gz``, replaced where they are.
        flips: average with the prediction of the mirrored volume.
        probabilities: write ``NAME_probability.nii.gz`` too; without, one of an earlier run is removed.

    Returns:
        What was found, in order, and file -> fault of the volumes that cannot be read, whose prediction is not finite,
        or whose mask the disk refuses.
    """
    from pipeline.inference import mask_from_probability, overlapped, predict_probability
    from pipeline.volumes import save_mask, save_probability, voxel_ml

    def predict(name: str) -> Prediction:
        image = volumes[name]
        probability = predict_probability(bundles, image, flips=flips)
        mask = mask_from_probability(bundles[0], probability)
        if probabilities:
            save_probability(probability, out / f"{name}_probability.nii.gz", image)
        else:
            (out / f"{name}_probability.nii.gz").unlink(missing_ok=True)
        save_mask(mask, out / f"{name}_mask.nii.gz", image)
        ml = voxel_ml(image)
        voxels = int(mask.sum())
        return Prediction(
            volume=name,
            lesion_voxels=voxels,
            lesion_ml=None if ml is None else voxels * ml,
            lesion_slices=int(mask.any(axis=(0, 1)).sum()),
            slices=mask.shape[2],
            image=str(image),
            image_sha256=sha256_file(image),
        )

    faults: dict[str, str] = {}

    def attempt(name: str) -> Prediction | None:
        try:
            return predict(name)
        except PipelineError as error:
            faults[str(volumes[name])] = str(error).removeprefix(f"{volumes[name]}: ")
            return None

    done = [found for found in overlapped(attempt, list(volumes), "predict") if found is not None]
    return done, {path: faults[path] for path in map(str, volumes.values()) if path in faults}


def _write_table(path: Path, predictions: Sequence[Prediction]) -> None:
    import pandas as pd

    names = [field.name for field in fields(Prediction)]
    rows = pd.DataFrame([asdict(prediction) for prediction in predictions], columns=names)
    write_atomically(path, rows.to_csv(index=False, lineterminator="\n").encode())


def table(predictions: Sequence[Prediction]) -> str:
    """The predictions as text."""
    width = max([len("volume"), *(len(shown(found.volume)) for found in predictions)])
    lines = [f"{'volume':<{width}}  {'voxels':>8}  {'ml':>8}  slices with lesion"]
    for found in predictions:
        ml = "-" if found.lesion_ml is None else f"{found.lesion_ml:.2f}"
        counts = f"{found.lesion_voxels:>8}  {ml:>8}  {found.lesion_slices} of {found.slices}"
        lines.append(f"{shown(found.volume):<{width}}  {counts}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_cli(main))
