"""Folder of LGG slices -> NIfTI volumes and manifest.json, every file accounted for. Research only.

``python -m pipeline.manifest SRC`` writes ``data_manifest/manifest.json``, a Decathlon datalist, and one image and one
label volume a patient. Nothing is joined from data.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.datalist import Manifest, read_manifest
from pipeline.errors import ManifestError, PipelineError, run_cli
from pipeline.files import Listing, counts_line, list_files, replace_all
from pipeline.history import STATE_NAME, changes, earlier_manifest, state_bytes, unchanged, verify
from pipeline.pseudonyms import aliases, check_place, key_for, pseudonymised, read_key
from pipeline.records import CHANNELS, SECTIONS
from pipeline.scripts.files import (
    checksum_path,
    locked,
    sha256_bytes,
    write_durably,
    write_with_checksum,
    writing_errors,
)
from pipeline.scripts.manifest import MANIFEST_NAME
from pipeline.slices import institution
from pipeline.splits import DRAWN, REFERENCE, SplitChoice, divide, fold_numbers, read_split

if TYPE_CHECKING:
    from pipeline.intake import Intake

SCHEMA_VERSION = 1
VOLUMES = "volumes"
_STAGING = ".building"


def main(argv: Sequence[str] | None = None) -> int:
    """Build, rebuild or verify a manifest.

    Args:
        argv: the arguments, None for those of the process.

    Returns:
        0.

    Raises:
        PipelineError: any fault of the folder, the options or an earlier manifest.
    """
    args = _parser().parse_args(argv)
    root, out = Path(args.source), Path(args.out)
    listing = list_files(root)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root)):
        raise PipelineError(f"--out {out} lies inside the source folder {root}. Choose a folder outside it.")
    key = args.pseudonymise
    if key:
        check_place(key, root, out)
    if args.verify:
        names = _names(read_manifest(out), listing, key)
        print(verify(root, out, listing, names))
        print(counts_line(read_manifest(out).raw["counts"]))
        return 0
    choice, options = _choice(args)
    if not args.rebuild and unchanged(out, options, listing):
        if (out / _STAGING).exists():  # of a run that was killed when it had written all
            with locked(out):
                shutil.rmtree(out / _STAGING, ignore_errors=True)
        print("unchanged: nothing written")
        _summarize(json.loads((out / MANIFEST_NAME).read_bytes()), out)
        return 0
    with locked(out, (VOLUMES,)):
        try:
            manifest = _run(args=args, root=root, out=out, listing=listing, choice=choice, options=options)
        finally:
            shutil.rmtree(out / _STAGING, ignore_errors=True)
    _summarize(manifest, out)
    return 0


def _run(
    *, args: argparse.Namespace, root: Path, out: Path, listing: Listing, choice: SplitChoice, options: dict[str, Any]
) -> dict[str, Any]:
    """Read the whole folder, judge it, and only then write."""
    from pipeline.intake import patients_of, read_folder
    from pipeline.patients import volume_names

    earlier = None if args.rebuild else earlier_manifest(out)
    names = _names(earlier, listing, args.pseudonymise) if earlier else None
    build = read_folder(
        root,
        listing,
        out / _STAGING,
        allow_gaps=args.allow_gaps,
        skip_unpaired=args.skip_unpaired,
        skip_faulty=args.skip_faulty,
    )
    changed = changes(earlier, listing.stamps, build.hashes, names) if earlier else {}
    build.refuse(changed)
    counts = build.counts(listing)
    if not listing.slices and not build.faults:
        print(counts_line(counts))
        raise PipelineError(
            f"{root}: no slice among {len(listing.stamps)} file(s) (expected <patient>_<number>.tif and "
            "<patient>_<number>_mask.tif). Check the path."
        )
    if changed or (build.faults and not args.skip_faulty):
        print(counts_line(counts))
        subjects = [*build.faults, *(subject for subject in changed if subject not in build.faults)]
        raise ManifestError({key: [*build.faults.get(key, []), *changed.get(key, [])] for key in subjects})
    for subject, messages in build.faults.items():
        print(f"warning: left out: {subject}: {'; '.join(messages)}", file=sys.stderr)
    try:
        sections, note = divide(build.records, choice, build.faulty)
        folds = fold_numbers(build.records, sections, choice)
    except PipelineError:
        print(counts_line(counts))
        raise
    manifest = _manifest(build, counts, choice=choice, options=options, sections=sections, folds=folds, note=note)
    staged: dict[str, Path] = {}
    if args.pseudonymise:
        key = key_for(args.pseudonymise, patients_of(listing))
        manifest = pseudonymised(manifest, key, aliases(listing.stamps, key))
        sections = {key[patient]: section for patient, section in sections.items()}
        for patient in build.records:
            for old, new in zip(volume_names(patient), volume_names(key[patient]), strict=True):
                staged[new] = out / _STAGING / old
    earlier = earlier or _readable(out)
    _write(out, manifest, listing, options, earlier=earlier, named=staged)
    before = (
        {volume.patient: name for name, volumes in earlier.sections.items() for volume in volumes} if earlier else {}
    )
    moved = sum(before.get(patient, section) != section for patient, section in sections.items())
    if moved:
        print(f"split changed: {moved} patients stand in another section; weights trained before may have seen them")
    return manifest


def _names(earlier: Manifest, listing: Listing, key: Path | None) -> dict[str, str] | None:
    """Path that a pseudonymised manifest tells -> path of the source folder; None where it tells the paths themselves.

    Raises:
        PipelineError: pseudonymised, and no key is given or there, or the other way round.
    """
    done = bool(earlier.raw.get("options", {}).get("pseudonymised"))
    if done != bool(key):
        how = "pseudonymised: pass --pseudonymise KEY" if done else "not pseudonymised: leave --pseudonymise out"
        raise PipelineError(f"{earlier.path}: {how}, or replace it by --rebuild.")
    if not key:
        return None
    if not key.is_file():
        raise PipelineError(f"{key}: no key, but {earlier.path} was built by one. Restore it, or pass --rebuild.")
    known = read_key(key)
    return {alias: path for path, alias in aliases(listing.stamps, known).items()}


def _manifest(
    build: Intake,
    counts: dict[str, int],
    *,
    choice: SplitChoice,
    options: dict[str, Any],
    sections: Mapping[str, str],
    folds: Mapping[str, int],
    note: str,
) -> dict[str, Any]:
    """The content of manifest.json: no time, no host, no absolute path, so that two builds agree byte for byte."""
    from pipeline.patients import volume_names

    lists: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    patients: dict[str, Any] = {}
    warnings: list[dict[str, str | None]] = [{"patient": None, "kind": "split", "message": note}] if note else []
    for name, record in sorted(build.records.items()):
        image, label = (f"{VOLUMES}/{file}" for file in volume_names(name))
        fold = {"fold": folds[name]} if name in folds else {}
        lists[sections[name]].append({"image": image, "label": label, "patient": name, **fold})
        entry = asdict(record)
        del entry["patient"]
        patients[name] = {"section": sections[name], "fold": folds.get(name), "institution": institution(name), **entry}
        for warning in record.warnings:
            kind, _, message = warning.partition(": ")
            warnings.append({"patient": name, "kind": kind, "message": message})
    for subject, messages in build.faults.items():
        warnings += [{"patient": None, "kind": "left out", "message": f"{subject}: {text}"} for text in messages]
    drawn = choice.method in DRAWN
    return {
        "name": "LGG FLAIR abnormality",
        "description": "Pre-contrast, FLAIR and post-contrast MRI slices as one volume per patient. Research only.",
        "reference": "M. Buda, A. Saha, M. A. Mazurowski, Computers in Biology and Medicine 109 (2019); "
        "M. A. Mazurowski et al., Journal of Neuro-Oncology 133 (2017); "
        "images from TCGA-LGG, The Cancer Imaging Archive",
        "licence": "that of the source folder; the published LGG Segmentation Dataset: CC BY-NC-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {str(index): channel for index, channel in enumerate(CHANNELS)},
        "labels": {"0": "background", "1": "FLAIR abnormality"},
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
        **{f"num{section.capitalize()}": len(lists[section]) for section in SECTIONS},
        "split": {
            "method": choice.method,
            "seed": choice.seed,
            "validation_fraction": choice.validation_fraction if drawn else None,
            "test_fraction": choice.test_fraction if drawn else None,
            "folds": choice.folds,
        },
        "options": options,
        "counts": counts,
        **lists,
        "patients": patients,
        "skipped": _reasons(build.skipped),
        "refused": _reasons(build.refused),
        "warnings": warnings,
    }


def _reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    """Path and reason, sorted by path."""
    return [{"path": path, "reason": reason} for path, reason in sorted(reasons.items())]


def _write(
    out: Path,
    manifest: dict[str, Any],
    listing: Listing,
    options: dict[str, Any],
    *,
    earlier: Manifest | None,
    named: Mapping[str, Path],
) -> None:
    """Put volumes and then the manifest in place, all or none, then drop volumes it no longer names.

    ``named`` tells the staged file of a volume that is to have another name.
    """
    items = [item for section in SECTIONS for item in manifest[section]]
    outputs = sorted(item[key] for item in items for key in ("image", "label"))
    staging, proof = out / _STAGING, checksum_path(out / MANIFEST_NAME)
    content = (json.dumps(manifest, indent=1) + "\n").encode()
    staged = {name: named.get(Path(name).name, staging / Path(name).name) for name in outputs}
    # Before anything of an earlier manifest is touched, the disk has taken all of this one.
    with writing_errors(out):
        known = proof.read_bytes() if (out / MANIFEST_NAME).is_file() and proof.is_file() else b""
        write_with_checksum(staging / MANIFEST_NAME, content)
        staged |= {MANIFEST_NAME: staging / MANIFEST_NAME}
        write_durably(staging / STATE_NAME, state_bytes(options, listing, staged))
        write_durably(staging / "both", sha256_bytes(content).encode() + b"\n" + known)
        (out / STATE_NAME).unlink(missing_ok=True)
    # For the moment of the change the hashes of both manifests hold.
    moves = {staging / "both": proof} if known else {}
    moves |= {source: out / name for name, source in staged.items()}
    moves |= {checksum_path(staging / MANIFEST_NAME): proof, staging / STATE_NAME: out / STATE_NAME}
    replace_all(moves, staging / "before")
    if earlier:
        old = {path for section in earlier.sections.values() for item in section for path in (item.image, item.label)}
        with writing_errors(out):
            for path in sorted(old - {out / name for name in outputs}):
                path.unlink(missing_ok=True)


def _readable(out: Path) -> Manifest | None:
    """The manifest that ``--rebuild`` replaces, None where it is missing or unreadable."""
    try:
        return earlier_manifest(out)
    except PipelineError:
        return None


def _summarize(manifest: dict[str, Any], out: Path) -> None:
    """Print what a person wants to know, and the next command."""
    patients = manifest["patients"].values()
    folds = f", {manifest['split']['folds']} folds" if manifest["split"]["folds"] else ""
    print(
        f"patients: {len(patients)} ("
        + ", ".join(f"{section} {len(manifest[section])}" for section in SECTIONS)
        + f"; split {manifest['split']['method']}{folds}), {sum(info['shape'][2] for info in patients)} slices"
    )
    print(counts_line(manifest["counts"]))
    reasons = Counter(entry["reason"].partition(":")[0] for entry in manifest["skipped"])
    if reasons:
        print("skipped: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())))
    missing = Counter(name for info in patients for name in info["missing_sequences"])
    if missing:
        print("missing sequences: " + ", ".join(f"{name} {count}" for name, count in sorted(missing.items())))
    kinds = Counter(warning["kind"] for warning in manifest["warnings"])
    print("warnings: " + (", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"))
    print(f"manifest: {out / MANIFEST_NAME} (research only, not for clinical use)")
    command = "python -m monai.bundle run --config_file bundles/basic_unet/configs/train.json"
    if manifest["training"]:
        print(f"next: {command} --dataset_dir {shlex.quote(str(out))}")
    else:
        given = f"--manifest {shlex.quote(str(out))} --bundle bundles/basic_unet"
        print(f"next: python -m pipeline.evaluate {given} --split test --out runs/evaluation")


def _choice(args: argparse.Namespace) -> tuple[SplitChoice, dict[str, Any]]:
    """The split asked for, and the options that decide what is written (no path among them).

    Raises:
        PipelineError: fractions that leave nothing, or an unreadable split file.
    """
    fractions = args.validation_fraction, args.test_fraction
    if not (all(0 <= fraction < 1 for fraction in fractions) and sum(fractions) < 1):
        raise PipelineError(
            f"--validation-fraction {fractions[0]} and --test-fraction {fractions[1]} "
            "(expected 0 or more each, together below 1). Leave some patients for training."
        )
    if args.seed < 0:
        raise PipelineError(f"--seed {args.seed} (expected 0 or more).")
    listed: dict[str, list[str]] = {}
    method, path = args.split, REFERENCE
    if method not in (*DRAWN, "none", "reference"):
        method, path = "file", Path(args.split)
        if not path.is_file():
            raise PipelineError(
                f"--split {args.split}: no such file (expected reference, random, stratified, none or a JSON file)."
            )
    if method in ("file", "reference"):
        listed = read_split(path)
    choice = SplitChoice(method, args.seed, *fractions, args.folds, listed)
    options = {
        **{key: getattr(args, key) for key in ("allow_gaps", "skip_unpaired", "skip_faulty")},
        "split": method,
        "split_sha256": hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest() if listed else None,
        "seed": args.seed,
        **({"pseudonymised": True} if args.pseudonymise else {}),
        "validation_fraction": fractions[0],
        "test_fraction": fractions[1],
        "folds": args.folds,
        "schema_version": SCHEMA_VERSION,
        "pipeline_version": __version__,
    }
    return choice, options


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.manifest",
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
