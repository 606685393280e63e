"""Command line: volumes or slices without truth + bundle(s) -> mask NIfTIs, lesion volumes; on request more of it."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundle import add_arguments, config_of, load_bundles, one_each, refuse_single_pass, versions
from pipeline.datalist import read_manifest, verify_volume
from pipeline.errors import ManifestError, PipelineError, run_cli
from pipeline.figures import FIGURES, Case, draw_cases, remove_outdated
from pipeline.files import counts_line
from pipeline.pseudonyms import check_place, key_for
from pipeline.scores import VOLUMES
from pipeline.scripts.faults import shown
from pipeline.scripts.files import locked, sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import IMAGE_SUFFIX, MANIFEST_NAME
from pipeline.slices import id_fault, is_junk_folder

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

TABLE = "predictions.csv"
SUMMARY = "predictions.json"
BUILT = ".built_from_slices"
"""Stands in ``--out`` from before the first volume is built of slices."""


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
        agreement: mean DSC between the masks of networks and flips (``metrics.pass_agreement``); None where it was not
            asked for, or no pass marks a voxel.
    """

    volume: str
    lesion_voxels: int
    lesion_ml: float | None
    lesion_slices: int
    slices: int
    image: str
    image_sha256: str
    agreement: float | None = None


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
        "it, or else every PATIENT_NUMBER.tif, stacked by patient; masks are passed over), or a manifest: "
        "manifest.json or its folder (every patient). Rows run to posterior, columns to the patient's left, slices to "
        "superior",
    )
    add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help=f"folder for NAME_mask.nii.gz, {TABLE} and {SUMMARY}")
    parser.add_argument(
        "--probability",
        action="store_true",
        help="write NAME_probability.nii.gz as well, float32, before threshold and component rule",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write NAME_uncertainty.nii.gz, the standard deviation over networks and flips, and into the table their "
        "agreement (mean DSC between their masks); needs --tta or several --bundle",
    )
    parser.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw figures/NAME/slice_NNN.png and figures/NAME.gif: the mask's contour red on FLAIR, beside it the "
        "uncertainty where asked for; slices with a voxel of the mask or with uncertainty (default: draw)",
    )
    parser.add_argument("--all-slices", action="store_true", help="--figures of slices with nothing in them, too")
    parser.add_argument("--allow-gaps", action="store_true", help="of TIFF slices: missing numbers are a warning")
    parser.add_argument(
        "--pseudonymise",
        type=Path,
        metavar="KEY",
        help="pseudonyms for the volumes' names in all that is written; KEY, a CSV of names and pseudonyms that must "
        "lie apart, is read and extended",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every volume; write masks, table and summary.

    Raises:
        PipelineError: what the caller can mend, each with its remedy; ``run_cli`` prints it and exits with 2.
    """
    args = arguments().parse_args(argv)
    if args.all_slices and not args.figures:
        raise PipelineError("--all-slices and --no-figures (expected one of them).")
    if args.uncertainty:
        refuse_single_pass(len(args.bundle), flips=args.tta)
    volumes = named(args.inputs, args.out)
    key: dict[str, str] = {}
    if args.pseudonymise:
        key, volumes = _pseudonymised(args, volumes)
    _refuse_what_is_there(args.out, volumes, overwrite=args.overwrite)
    for folder in args.bundle:
        config_of(folder)
    one_each("--weights", args.weights, args.bundle)
    with locked(args.out, (VOLUMES, FIGURES)):
        return _predict(args, volumes, key)


def _pseudonymised(args: argparse.Namespace, volumes: dict[str, Path]) -> tuple[dict[str, str], dict[str, Path]]:
    """The key, with all of these volumes in it, and the volumes by their pseudonyms.

    Raises:
        PipelineError: the key lies among inputs or results, or results under the names themselves are there.
    """
    check_place(args.pseudonymise, args.out, *(path for path in args.inputs if path.is_dir()))
    named = [
        path
        for name in volumes
        for path in (args.out, args.out / VOLUMES)
        if list(path.glob(f"{glob.escape(name)}_*.nii.gz"))
    ]
    if named:
        raise PipelineError(f"{named[0]}: holds results under the patients' own names. Choose another --out.")
    names, built = key_for(args.pseudonymise, volumes), args.out / VOLUMES
    renamed = {
        names[name]: built / f"{names[name]}{IMAGE_SUFFIX}" if path.parent == built else path
        for name, path in volumes.items()
    }
    return names, dict(sorted(renamed.items()))  # the order of the names would tell of them


def _predict(args: argparse.Namespace, volumes: dict[str, Path], key: Mapping[str, str]) -> int:
    """Predict and write what was asked for."""
    for path in args.inputs:
        if _holds_slices(path):
            from pipeline.intake import stage_images

            write_durably(args.out / BUILT, b"volumes/ here was built of slices; it is no input of a prediction\n")
            odd, counts = stage_images(path, args.out / VOLUMES, allow_gaps=args.allow_gaps, names=key)
            print(counts_line(counts))
            for name, oddities in odd.items():
                for oddity in oddities:
                    print(f"warning: {name}: {oddity}")
    _check(volumes)
    bundles = load_bundles(args.bundle, args.weights, args.backend, trust=args.trust)
    for bundle in bundles:
        print(bundle.as_trained())
    # Until the end there is no table: one of an earlier run would pass for that of new masks.
    for name in (TABLE, SUMMARY):
        with writing_errors(args.out / name):
            (args.out / name).unlink(missing_ok=True)
    predictions, faults = predict_volumes(
        bundles,
        volumes,
        args.out,
        flips=args.tta,
        probabilities=args.probability,
        uncertainty=args.uncertainty,
    )
    if not predictions:
        raise ManifestError({path: [message] for path, message in faults.items()})
    names = {str(path): name for name, path in volumes.items()}
    if key:  # the file's own name may be the patient's
        predictions = [replace(found, image=f"{found.volume}{IMAGE_SUFFIX}") for found in predictions]
    summary = {
        "bundles": [bundle.provenance() for bundle in bundles],
        "tta": args.tta,
        "backend": args.backend,
        "device": str(bundles[0].device),
        "versions": versions(args.backend),
        "volumes": [asdict(prediction) for prediction in predictions],
        "failed": {
            _told(path, names[path], key): text.replace(path, _told(path, names[path], key))
            for path, text in faults.items()
        },
    }
    write_durably(args.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    _write_table(args.out / TABLE, predictions)
    cases = _cases(predictions, volumes, args.out)
    remove_outdated(cases, args.out / FIGURES)
    if args.figures:
        draw_cases(cases, args.out / FIGURES, all_slices=args.all_slices)
        print(f"figures: {args.out / FIGURES}")
    refused = len(volumes) - len(predictions)
    skipped = [
        path
        for given in args.inputs
        if _is_folder_of_volumes(given)
        for path in _listed(given)[1]
        if args.out not in path.parents  # its own results
    ]
    print(
        f"volumes: {len(volumes) + len(skipped)} found = {len(predictions)} used + {len(skipped)} skipped + "
        f"{refused} refused"
    )
    if skipped and not key:
        first = ", ".join(shown(path.name) for path in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        print(f"skipped, of a folder *{IMAGE_SUFFIX} is taken; others have to be named: {first}{more}")
    print(table(predictions))
    print(f"Research only, not for clinical use. Masks and table: {args.out}")
    if faults:
        raise ManifestError({path: [message] for path, message in faults.items()})
    return 0


def _told(path: str, name: str, key: Mapping[str, str]) -> str:
    """A volume's path for a file: its name where the path names a folder of this machine, or the patient."""
    return name if key else Path(path).name if Path(path).is_absolute() else path


def _refuse_what_is_there(out: Path, volumes: dict[str, Path], *, overwrite: bool) -> None:
    """Keep the results of one folder about the same volumes and networks.

    Raises:
        PipelineError: results are there that may not be replaced, or ``out`` is no folder.
    """
    if out.exists() and not out.is_dir():
        raise PipelineError(f"{out}: is a file (expected a folder, or a name for a new one). Choose another --out.")
    masks = [f"{name}_{kind}.nii.gz" for name in volumes for kind in ("mask", "probability", "uncertainty")]
    there = [out / name for name in (*masks, TABLE, SUMMARY) if (out / name).exists()]
    if there and not overwrite:
        more = f", with {len(there) - 1} more" if len(there) > 1 else ""
        raise PipelineError(f"{there[0]}: is there already{more}. Choose another --out, or pass --overwrite.")


def _cases(predictions: Sequence[Prediction], volumes: dict[str, Path], out: Path) -> list[Case]:
    cases = []
    for found in predictions:
        uncertainty = out / f"{found.volume}_uncertainty.nii.gz"
        cases.append(
            Case(
                name=found.volume,
                image=volumes[found.volume],
                mask=out / f"{found.volume}_mask.nii.gz",
                uncertainty=uncertainty if uncertainty.is_file() else None,
            )
        )
    return cases


def named(inputs: Sequence[Path], out: Path) -> dict[str, Path]:
    """The volumes that inputs stand for, by names that no two share.

    Args:
        inputs: NIfTI volumes, folders of them or of slices, manifests.
        out: folder in which volumes of slices will be built.

    Raises:
        PipelineError: an input with no volume in it, or two volumes of one name.
    """
    found = [pair for path in inputs for pair in _volumes(path, out)]
    if not found:
        raise PipelineError(f"{', '.join(map(str, inputs))}: no volume in it. Build the manifest of other slices.")
    for name, path in found:
        fault = id_fault(name)
        if fault:
            raise PipelineError(
                f"{path}: its name without {IMAGE_SUFFIX} {fault} (expected a letter or digit, then letters, digits, "
                "'_', '-', '.' and space). Rename the file."
            )
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        files = ", ".join(str(path) for name, path in found if name == twice[0])
        raise PipelineError(f"two volumes of the name {twice[0]} ({files}). Rename one, or predict them apart.")
    return dict(found)


def _holds_slices(path: Path) -> bool:
    """True for a folder that is no manifest's and has no volume below it: TIFF slices are looked for."""
    return path.is_dir() and not (path / MANIFEST_NAME).is_file() and not _images(path)


def _is_folder_of_volumes(path: Path) -> bool:
    return path.is_dir() and not (path / MANIFEST_NAME).is_file() and bool(_images(path))


def _images(folder: Path) -> list[Path]:
    """Image volumes below a folder."""
    return _listed(folder)[0]


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image volumes below a folder and other NIfTI files, but what a prediction has built of slices.

    Raises:
        PipelineError: a folder in it that cannot be read, or a volume that is a link out of it, or to nothing.
    """

    def fail(error: OSError) -> None:
        raise PipelineError(f"{error.filename}: the folder cannot be read ({error.strerror}). Mend its permissions.")

    images: list[Path] = []
    others: list[Path] = []
    for parent, _, files in os.walk(folder, onerror=fail):
        place = Path(parent)
        if place.name == VOLUMES and (place.parent / BUILT).is_file():
            continue
        hidden = any(is_junk_folder(part) for part in place.relative_to(folder).parts)
        for path in (place / name for name in files if name.endswith((".nii", ".nii.gz"))):
            taken = path.name.endswith(IMAGE_SUFFIX) and not hidden and not path.name.startswith("._")
            if taken and path.is_symlink():
                target = Path(os.path.realpath(path))
                if not target.is_file() or Path(os.path.realpath(folder)) not in target.parents:
                    raise PipelineError(
                        f"{path}: a symbolic link out of the folder, or to nothing (not followed). Replace it by the "
                        "file itself."
                    )
            (images if taken else others).append(path)
    return sorted(images), sorted(others)


def _volumes(path: Path, out: Path) -> Iterator[tuple[str, Path]]:
    if path.name == MANIFEST_NAME or (path / MANIFEST_NAME).is_file():
        for section in read_manifest(path).sections.values():
            for volume in section:
                verify_volume(volume)
                yield volume.patient, volume.image
    elif _holds_slices(path):
        from pipeline.intake import slice_patients, stage_images

        patients = slice_patients(path)
        if not patients:
            stage_images(path, out / VOLUMES, allow_gaps=True)  # names that say no patient are told by it
            raise PipelineError(
                f"{path}: neither *{IMAGE_SUFFIX} nor PATIENT_NUMBER.tif below it, and no {MANIFEST_NAME} in it. Name "
                "the volumes one by one, or the folder of the slices or of a manifest."
            )
        yield from ((name, out / VOLUMES / f"{name}{IMAGE_SUFFIX}") for name in patients)
    elif path.is_dir():
        from pipeline.intake import slice_patients

        images = _images(path)
        slices = slice_patients(path)
        if slices:
            raise PipelineError(
                f"{path}: holds volumes ({images[0].relative_to(path)}, {len(images)} in all) and slices (of "
                f"{len(slices)} patients, {slices[0]} the first). Predict them apart: give the folders one by one."
            )
        yield from ((image.name.removesuffix(IMAGE_SUFFIX), image) for image in images)
    elif path.name.endswith((".nii", ".nii.gz")):
        yield path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_image"), path
    else:
        raise PipelineError(
            f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected .nii.gz, .nii, a folder of "
            "slices or volumes, or a manifest). Check the path."
        )


def _check(volumes: dict[str, Path]) -> None:
    """Headers first: a fault in the last volume is told before the first one is predicted.

    Raises:
        ManifestError: the faults of all.
    """
    from pipeline.scripts.volumes import image_faults

    faults = image_faults(volumes.values())
    if faults:
        raise ManifestError({str(path): [fault] for path, fault in faults.items()})


def predict_volumes(
    bundles: Sequence[Bundle],
    volumes: dict[str, Path],
    out: Path,
    *,
    flips: bool,
    probabilities: bool,
    uncertainty: bool = False,
) -> tuple[list[Prediction], dict[str, str]]:
    """Predict volumes and write their masks; reading, network and writing of three volumes overlap.

    A volume that cannot be predicted does not keep the others from it.

    Args:
        bundles: whose probabilities are averaged; threshold and component rule are those of the first.
        volumes: name -> NIfTI image, (H, W, D, 3).
        out: folder for ``NAME_mask.nii.gz``, replaced where they are.
        flips: average with the prediction of the mirrored volume.
        probabilities: write ``NAME_probability.nii.gz`` too; without, one of an earlier run is removed.
        uncertainty: likewise ``NAME_uncertainty.nii.gz``.

    Returns:
        What was found, in order, and file -> fault of the volumes that cannot be read, whose prediction is not finite,
        or whose mask the disk refuses.
    """
    from pipeline.inference import disagreement, mask_from_probability, mean_probability, overlapped, predict_passes
    from pipeline.metrics import pass_agreement
    from pipeline.volumes import refuse_unusable, save_map, save_mask, voxel_ml

    def predict(name: str) -> Prediction:
        image = volumes[name]
        refuse_unusable(image)
        passes = predict_passes(bundles, image, flips=flips)
        probability = mean_probability(passes)
        mask = mask_from_probability(bundles[0], probability)
        for kind, wanted in (("probability", probabilities), ("uncertainty", uncertainty)):
            path = out / f"{name}_{kind}.nii.gz"
            if wanted:
                save_map(probability if kind == "probability" else disagreement(passes), path, image)
            else:
                path.unlink(missing_ok=True)
        save_mask(mask, out / f"{name}_mask.nii.gz", image)
        ml = voxel_ml(image)
        voxels = int(mask.sum())
        return Prediction(
            volume=name,
            lesion_voxels=voxels,
            lesion_ml=None if ml is None else voxels * ml,
            lesion_slices=int(mask.any(axis=(0, 1)).sum()),
            slices=mask.shape[2],
            image=image.name if image.is_absolute() else str(image),
            image_sha256=sha256_file(image),
            agreement=pass_agreement([mask_from_probability(bundles[0], one) for one in passes])
            if uncertainty
            else None,
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
    write_durably(path, rows.to_csv(index=False, lineterminator="\n").encode())


def table(predictions: Sequence[Prediction]) -> str:
    """The predictions as text."""
    width = max([len("volume"), *(len(shown(found.volume)) for found in predictions)])
    agreement = any(found.agreement is not None for found in predictions)
    lines = [f"{'volume':<{width}}  {'voxels':>8}  {'ml':>8}  " + "agreement  " * agreement + "slices with lesion"]
    for found in predictions:
        ml = "-" if found.lesion_ml is None else f"{found.lesion_ml:.2f}"
        agrees = "-" if found.agreement is None else f"{found.agreement:.3f}"
        counts = f"{found.lesion_voxels:>8}  {ml:>8}  {f'{agrees:>9}  ' * agreement}"
        lines.append(f"{shown(found.volume):<{width}}  {counts}{found.lesion_slices} of {found.slices}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_cli(main))
