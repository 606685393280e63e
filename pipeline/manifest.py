"""The command ``lgg-flair manifest``: turn a folder of slices or volumes into NIfTI volumes and manifest.json.

The manifest is a Decathlon datalist. Each patient has an image volume and a label volume. Every file of the folder is
counted as used, skipped or refused. The file data.csv of the published dataset is not used. Research only.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cohort.listing import counts_line
from pipeline.command_line import PROGRAM, CommandParser, print_json, run_cli, say
from pipeline.errors import ManifestError, PipelineError
from pipeline.scripts.manifest import MANIFEST_NAME, SECTIONS

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.0}
"""Shares of the persons by option, with their defaults."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build, rebuild or verify a manifest.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        ManifestError: Files of the folder have errors, or differ from the manifest; each has a message.
        PipelineError: An option is wrong, or there is no manifest to verify.
    """
    args = vars(arguments().parse_args(argv))
    from pipeline.cohort.building import build_manifest
    from pipeline.cohort.changes import verify_manifest

    path, for_scripts = str(Path(args["out"]) / MANIFEST_NAME), args.pop("json")
    if args.pop("verify"):
        try:
            say(verify_manifest(args["source"], args["out"], args["pseudonymise"]))
        except ManifestError as error:
            if for_scripts:
                print_json({"manifest": path, "ok": False, "faults": error.faults})
            raise
        if for_scripts:
            print_json({"manifest": path, "ok": True, "faults": {}})
        return 0
    _set_fractions(args)
    result = build_manifest(**args)
    if not result.is_new:
        say("unchanged: nothing written")
    _summarise(result.content, Path(args["out"]))
    if for_scripts:
        patients = {section: [item["patient"] for item in result.content[section]] for section in SECTIONS}
        kept = {key: result.content[key] for key in ("counts", "skipped", "warnings")}
        print_json({"manifest": path, "is_new": result.is_new, "patients": patients, **kept})
    return 0


def _set_fractions(args: dict[str, Any]) -> None:
    """Set the shares that were not given to their defaults. Refuse given ones where the split is not drawn."""
    from pipeline.cohort.splits import DRAWN

    for name, default in FRACTIONS.items():
        if args[name] is None:
            args[name] = default
        elif args["split"] not in DRAWN:
            option = name.replace("_", "-")
            raise PipelineError(
                f"--{option} with --split {args['split']} (expected --split {' or '.join(DRAWN)}). "
                f"Leave --{option} out, or pass another --split."
            )


def _summarise(manifest: Mapping[str, Any], out: Path) -> None:
    """Print the counts of patients and files, and the next command."""
    patients = manifest["patients"].values()
    folds = f", {manifest['split']['folds']} folds" if manifest["split"]["folds"] else ""
    sizes = ", ".join(f"{section} {len(manifest[section])}" for section in SECTIONS)
    slices = sum(info["shape"][2] for info in patients)
    say(f"patients: {len(patients)} ({sizes}; split {manifest['split']['method']}{folds}), {slices} slices")
    say(counts_line(manifest["counts"]))
    kinds = {
        "skipped": Counter(entry["reason"].partition(":")[0] for entry in manifest["skipped"]),
        "missing sequences": Counter(name for info in patients for name in info["missing_sequences"]),
        "warnings": Counter(warning["kind"] for warning in manifest["warnings"]),
    }
    for title, counts in kinds.items():
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        if listed or title == "warnings":
            say(f"{title}: {listed or 'none'}")
    say(f"manifest: {out / MANIFEST_NAME} (research only, not for clinical use)")
    given = f"--manifest {shlex.quote(str(out))} --bundle basic_unet"
    if manifest["training"]:
        say(f"next: {PROGRAM} train {given}")
    else:
        say(f"next: {PROGRAM} evaluate {given} --split test --out runs/evaluation")


def _label_values(text: str) -> tuple[int, ...]:
    """The numbers in a text such as ``1,2,4``."""
    values = text.split(",")
    if not all(value.isdecimal() and int(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} (expected whole numbers above 0, such as 1,2,4)")
    return tuple(map(int, values))


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = CommandParser(
        "manifest",
        description="Turn a folder of LGG slices, or of image and mask volumes, into NIfTI volumes and manifest.json. "
        "Research only.",
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SRC",
        help="folder of slices as published, PATIENT_NUMBER.tif and PATIENT_NUMBER_mask.tif; or folder of volumes "
        "(NIfTI, MHA, NRRD) named as in BraTS (X_flair, X_seg), BIDS (masks beside or in derivatives/), nnU-Net "
        "(imagesTr, labelsTr) or a Decathlon dataset.json, or in pairs (X_image and X_label or X_mask, images/X and "
        "labels/X)",
    )
    add(
        "--out",
        default="data_manifest",
        metavar="DIR",
        help="output folder, for manifest and volumes (default: %(default)s)",
    )
    add(
        "--split",
        default="reference",
        help="how to divide the patients: reference (the ten published validation patients), random, stratified "
        "(institution and lesion volume), none (all in the test section), or a JSON file with lists of ids under "
        "validation, test, training, and a list of such lists under folds (default: %(default)s)",
    )
    seed_help = "random seed of random and stratified splits, and of folds (default: %(default)s)"
    add("--seed", type=int, default=0, help=seed_help)
    for name, default in FRACTIONS.items():
        option, section = f"--{name.replace('_', '-')}", name.partition("_")[0]
        share = f"share of the persons in the {section} section of random and stratified splits, 0 to 1"
        add(option, type=float, metavar="F", help=f"{share} (default: {default})")
    add("--folds", type=int, metavar="K", help="number of folds; patients outside the test section get one of 0 to K-1")
    add("--allow-gaps", action="store_true", help="warn of missing slice numbers, and do not refuse the patient")
    add("--skip-unpaired", action="store_true", help="skip images without a mask and masks without an image")
    add("--skip-faulty", action="store_true", help="leave out every patient with an error, and use the others")
    add(
        "--label-values",
        type=_label_values,
        default=(),
        metavar="V,V",
        help="values in a label volume that mean lesion, such as 1,2,4 (default: the only value other than 0)",
    )
    key = (
        "replace patient ids by pseudonyms; KEY is a CSV of ids and pseudonyms in a separate folder, which is read and "
        "extended"
    )
    add("--pseudonymise", type=Path, metavar="KEY", help=key)
    add("--rebuild", action="store_true", help="build from the folder as it is now, and replace an earlier manifest")
    verify_help = "build nothing; compare the SHA-256 of every source file and volume with the manifest"
    add("--verify", action="store_true", help=verify_help)
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
