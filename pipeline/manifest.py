"""Command line: a folder of LGG slices -> NIfTI volumes and manifest.json, every file accounted for. Research only.

``python -m pipeline.manifest SRC`` writes ``data_manifest/manifest.json``, a Decathlon datalist, and one image and one
label volume a patient. Nothing is joined from data.csv.
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
from pipeline.command_line import CommandParser, program, run_cli, say
from pipeline.scripts.manifest import MANIFEST_NAME, SECTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Build, rebuild or verify a manifest.

    Raises:
        PipelineError: Any fault of the folder, the options or an earlier manifest.
    """
    args = vars(arguments().parse_args(argv))
    from pipeline.cohort.building import build_manifest
    from pipeline.cohort.changes import verify_manifest

    if args.pop("verify"):
        say(verify_manifest(args["source"], args["out"], args["pseudonymise"]))
        return 0
    result = build_manifest(**args)
    if not result.is_new:
        say("unchanged: nothing written")
    say("\n".join(_summary(result.content, Path(args["out"]))))
    return 0


def _summary(manifest: Mapping[str, Any], out: Path) -> list[str]:
    """What a person wants to know, and the next command."""
    patients = manifest["patients"].values()
    folds = f", {manifest['split']['folds']} folds" if manifest["split"]["folds"] else ""
    sizes = ", ".join(f"{section} {len(manifest[section])}" for section in SECTIONS)
    lines = [
        f"patients: {len(patients)} ({sizes}; split {manifest['split']['method']}{folds}), "
        f"{sum(info['shape'][2] for info in patients)} slices",
        counts_line(manifest["counts"]),
    ]
    reasons = Counter(entry["reason"].partition(":")[0] for entry in manifest["skipped"])
    if reasons:
        lines.append("skipped: " + _listed(reasons))
    missing = Counter(name for info in patients for name in info["missing_sequences"])
    if missing:
        lines.append("missing sequences: " + _listed(missing))
    kinds = Counter(warning["kind"] for warning in manifest["warnings"])
    lines.append("warnings: " + (_listed(kinds) or "none"))
    lines.append(f"manifest: {out / MANIFEST_NAME} (research only, not for clinical use)")
    if manifest["training"]:
        command = "python -m monai.bundle run --config_file bundles/basic_unet/configs/train.json"
        return [*lines, f"next: {command} --dataset_dir {shlex.quote(str(out))}"]
    given = f"--manifest {shlex.quote(str(out))} --bundle bundles/basic_unet"
    return [*lines, f"next: {program('evaluate')} {given} --split test --out runs/evaluation"]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = CommandParser(
        "manifest",
        description="Turn a folder of LGG slices into NIfTI volumes and manifest.json. Research only.",
    )
    add = parser.add_argument
    add("source", metavar="SRC", help="published folder: <patient>_<number>.tif and <patient>_<number>_mask.tif")
    add("--out", default="data_manifest", metavar="DIR", help="folder for manifest and volumes (%(default)s)")
    add(
        "--split",
        default="reference",
        help="reference (ten published validation patients), random, stratified (institution and lesion volume), "
        "none (all test), or a JSON file with lists of ids under validation, test, training (%(default)s)",
    )
    add("--seed", type=int, default=0, help="of random and stratified splits and of folds (%(default)s)")
    add("--validation-fraction", type=float, default=0.1, metavar="F", help="of the persons (%(default)s)")
    add("--test-fraction", type=float, default=0.0, metavar="F", help="of the persons (%(default)s)")
    add("--folds", type=int, metavar="K", help="number the patients outside the test section 0 to K-1")
    add("--allow-gaps", action="store_true", help="missing slice numbers are a warning")
    add("--skip-unpaired", action="store_true", help="skip images without mask and masks without image")
    add("--skip-faulty", action="store_true", help="leave out every patient with a fault and go on")
    add(
        "--pseudonymise",
        type=Path,
        metavar="KEY",
        help="pseudonyms for patient ids in all that is written; KEY, a CSV of ids and pseudonyms that must lie apart, "
        "is read and extended",
    )
    add("--rebuild", action="store_true", help="take the folder as it is, whatever an earlier manifest says")
    add("--verify", action="store_true", help="build nothing, recheck the SHA-256 of every source file and volume")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
