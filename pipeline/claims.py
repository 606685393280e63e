"""Command line: docs/results -> the figures in README, bundle docs and metadata, checked, written or measured again.

A result is a folder below ``docs/results`` with the ``summary.json`` and ``scores.csv`` of ``pipeline.evaluate``. Those
below ``shipped/`` are of the weights in ``bundles/*/models``. A page shows results between two comments:

    <!-- summaries shipped/basic_unet_native shipped/basic_unet_reference -->
    <!-- end -->

holds a table with a row for each, ``<!-- scores demo -->`` the table of volumes as the command line prints it,
``<!-- compare BASE OTHER -->`` differences to the first, patient by patient, with their interval, and
``<!-- patients ONE OTHER -->`` a column of DSC for each.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, run_cli
from pipeline.files import write_atomically

RESULTS = Path("docs/results")
SHIPPED = "shipped"
WITHIN = 0.002
"""By which a mean DSC may differ when it is measured again, by another machine or number format."""
NEEDED = ("command", "seed", "manifest_sha256", "bundles", "protocol", "tta", "dsc_mean", "dsc_median", "dsc_mean_95")
BLOCK = re.compile(r"<!-- (summaries|scores|compare|patients) ([^>]+?) -->\n(.*?)<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"(?<![\d.])0\.[1-9]\d{2,3}(?!\d)")
"""What a page says of a DSC: 0 and three or four digits."""

RATIOS, COUNTS = ("dsc", "hd95_px", "sensitivity", "precision"), ("tp_voxels", "fp_voxels", "fn_voxels")

Summary = dict[str, Any]


def pages(root: Path) -> list[Path]:
    """The pages whose figures must stand in ``docs/results``."""
    return [root / "README.md", *sorted(root.glob("bundles/*/docs/README.md"))]


def pages_with_tables(root: Path) -> list[Path]:
    """Those, and the pages on what was measured, where only the tables are written from ``docs/results``."""
    return [*pages(root), *sorted((root / "docs").glob("*.md"))]


def results(root: Path) -> dict[str, Path]:
    """Folders with a summary by their name below ``docs/results``."""
    found = sorted((root / RESULTS).rglob("summary.json"))
    return {path.parent.relative_to(root / RESULTS).as_posix(): path.parent for path in found}


def faults(root: Path) -> list[str]:
    """What does not agree among pages, metadata, weights and ``docs/results``; needs no patient.

    Args:
        root: of the repository.
    """
    known = results(root)
    found = [fault for name, folder in known.items() for fault in _faults_of_result(name, folder, root)]
    figures = {text for folder in (root / RESULTS).rglob("*.*") for text in _figures_in(folder)}
    for page in pages_with_tables(root):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(root)
        try:
            if with_results(text, root) != text:
                found.append(f"{name}: a table is not what docs/results gives; run `make claims`")
        except PipelineError as error:
            found.append(f"{name}: {error}")
        stray = sorted(set(FIGURE.findall(BLOCK.sub("", text))) - figures) if page in pages(root) else []
        found += [f"{name}: {figure} stands in no file below docs/results" for figure in stray]
    for metadata in sorted(root.glob("bundles/*/configs/metadata.json")):
        found += _faults_of_metadata(metadata, known)
    return found


def with_results(text: str, root: Path) -> str:
    """A page with its tables as ``docs/results`` gives them.

    Args:
        text: Markdown.
        root: of the repository.

    Raises:
        PipelineError: it names a result that is not there.
    """

    def filled(match: re.Match[str]) -> str:
        kind, names = match[1], match[2].split()
        folders = [root / RESULTS / name for name in names]
        for name, folder in zip(names, folders, strict=True):
            if not (folder / "summary.json").is_file():
                raise PipelineError(f"names {name}, and {RESULTS / name} holds no summary.json.")
        body = KINDS[kind](folders)
        return f"<!-- {kind} {match[2]} -->\n{body}<!-- end -->"

    return BLOCK.sub(filled, text)


def measured_again(root: Path, data: Path) -> list[str]:
    """Score the shipped weights once more and compare with ``docs/results``.

    Args:
        root: of the repository.
        data: the published folder of slices, or the folder of a manifest.

    Returns:
        What is off by more than ``WITHIN``.

    Raises:
        PipelineError: nothing is shipped, or a command fails.
    """
    shipped = {name: folder for name, folder in results(root).items() if name.startswith(f"{SHIPPED}/")}
    if not shipped:
        raise PipelineError(f"{RESULTS / SHIPPED}: holds no summary.json (expected those of the shipped weights).")
    off = []
    with tempfile.TemporaryDirectory() as scratch:
        manifest = data.resolve()
        if not (manifest / "manifest.json").is_file():
            manifest = Path(scratch) / "manifest"
            _run(root, "pipeline.manifest", str(data.resolve()), "--out", str(manifest))
        for name, folder in shipped.items():
            summary = _read(folder)
            out = Path(scratch) / name.replace("/", "_")
            bundles = [option for one in summary["bundles"] for option in ("--bundle", f"bundles/{one['name']}")]
            options = ["--protocol", summary["protocol"], "--split", summary["split"], *["--tta"] * summary["tta"]]
            _run(root, "pipeline.evaluate", "--manifest", str(manifest), *bundles, *options, "--out", str(out))
            again = _read(out)
            print(f"{name}: claimed {summary['dsc_mean']:.4f}, measured {again['dsc_mean']:.4f}", flush=True)
            if again["manifest_sha256"] != summary["manifest_sha256"]:
                print("  of another manifest: other patients, or the same ones otherwise divided")
            if abs(again["dsc_mean"] - summary["dsc_mean"]) > WITHIN:
                off.append(f"{name}: mean DSC {again['dsc_mean']:.4f} (claimed: {summary['dsc_mean']:.4f})")
    return off


def _run(root: Path, module: str, *options: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-m", module, *options], cwd=root, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise PipelineError(f"python -m {module} {' '.join(options)}:\n{done.stderr.strip()}")


def _read(folder: Path) -> Summary:
    path = folder / "summary.json"
    try:
        summary: Summary = json.loads(path.read_bytes())
        missing = [key for key in NEEDED if key not in summary]
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(f"{path}: no readable summary ({error}). Restore it.") from error
    if missing:
        raise PipelineError(f"{path}: {', '.join(missing)} missing. Write it by pipeline.evaluate.")
    return summary


def _scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _faults_of_result(name: str, folder: Path, root: Path) -> list[str]:
    """A summary that is not of its scores, or is of other weights than those shipped."""
    try:
        summary = _read(folder)
        dsc = [float(row["dsc"]) for row in _scores(folder) if row["dsc"]]
    except (PipelineError, OSError, ValueError, KeyError) as error:
        return [f"{name}: {error}"]
    found = []
    if not dsc or not math.isclose(sum(dsc) / len(dsc), summary["dsc_mean"], abs_tol=1e-9):
        found.append(f"{name}: the mean of scores.csv is not the summary's")
    for bundle in summary["bundles"] if name.startswith(f"{SHIPPED}/") else []:
        weights = root / "bundles" / bundle["name"] / "models" / "model.pt"
        if not weights.is_file() or hashlib.sha256(weights.read_bytes()).hexdigest() != bundle["weights_sha256"]:
            found.append(f"{name}: is of other weights than {weights.relative_to(root)}")
    return found


def _faults_of_metadata(metadata: Path, known: dict[str, Path]) -> list[str]:
    """``eval_metrics`` that are not those of the bundle's results, or another hash than that of its weights."""
    content, bundle = json.loads(metadata.read_bytes()), metadata.parent.parent
    found = []
    weights = bundle / "models" / "model.pt"
    actual = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    if content.get("weights", {}).get("sha256") != actual:
        found.append(f"{bundle.name}: metadata names weights of another SHA-256 than {actual} of models/model.pt")
    for key, value in content.get("eval_metrics", {}).items():
        statistic, _, protocol = key.rpartition("_")
        folder = known.get(f"{SHIPPED}/{bundle.name}_{protocol}")
        if folder is None or round(_read(folder).get(statistic, math.nan), 4) != value:
            found.append(f"{bundle.name}: metadata says {key} {value}, docs/results does not")
    return found


def _figures_in(path: Path) -> Iterator[str]:
    """Numbers of a file, rounded to three and four digits."""
    if path.suffix not in (".json", ".csv"):
        return
    for number in re.findall(r"(?<![\w.])0?\.\d+", path.read_text(encoding="utf-8")):
        yield f"{float(number):.4f}"
        yield f"{float(number):.3f}"


def _table(folders: Sequence[Path]) -> str:
    lines = ["| | mean DSC (95 % interval) | median | lowest | patients |", "|---|---|---|---|---|"]
    for folder in folders:
        summary = _read(folder)
        low, high = summary["dsc_mean_95"]
        lines.append(
            f"| {_what(summary)} | {summary['dsc_mean']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {summary['dsc_median']:.4f} | {summary['dsc_min']:.4f} | {summary['scored']} |"
        )
    return "\n".join(lines) + "\n"


def _what(summary: Summary) -> str:
    names = " + ".join(dict.fromkeys(bundle["name"] for bundle in summary["bundles"]))
    folds = {bundle["fold"] for bundle in summary["bundles"] if "fold" in bundle}
    parts = [names, *([f"{len(folds)} folds"] if folds else []), f"{summary['protocol']} protocol"]
    return ", ".join(parts + ["flips"] * summary["tta"])


def _volumes(folders: Sequence[Path]) -> str:
    from pipeline.records import VolumeScore
    from pipeline.scores import table

    blocks = []
    for folder in folders:
        scores = []
        for row in _scores(folder):
            dsc, hd95, sensitivity, precision = (float(row[key]) if row[key] else None for key in RATIOS)
            tp, fp, fn = (int(row[key]) for key in COUNTS)
            scores.append(VolumeScore(row["patient"], dsc, hd95, sensitivity, precision, tp, fp, fn))
        blocks.append(f"```\n{table(scores, _read(folder)['seed'])}\n```\n")
    return "\n".join(blocks)


def _compare(folders: Sequence[Path]) -> str:
    from pipeline.metrics import bootstrap_interval

    base = _by_patient(folders[0])
    lines = ["| | mean DSC | difference (95 % interval) | better, worse |", "|---|---|---|---|"]
    for folder in folders:
        dsc = _by_patient(folder)
        line = f"| {folder.name} | {sum(dsc.values()) / len(dsc):.4f} |"
        if folder != folders[0]:
            apart = [value - base[patient] for patient, value in dsc.items() if patient in base]
            low, high = bootstrap_interval(apart, _read(folder)["seed"])
            line += f" {sum(apart) / len(apart):+.4f} ({low:+.4f} to {high:+.4f}) |"
            line += f" {sum(value > 0 for value in apart)}, {sum(value < 0 for value in apart)} |"
        else:
            line += " | |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _patients(folders: Sequence[Path]) -> str:
    columns = [_by_patient(folder) for folder in folders]
    lines = ["| patient | " + " | ".join(folder.name for folder in folders) + " |", "|---" * (len(folders) + 1) + "|"]
    for patient in sorted(columns[0], key=lambda name: columns[0][name]):
        cells = (f"{dsc[patient]:.4f}" if patient in dsc else "" for dsc in columns)
        lines.append(f"| {patient} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_patient(folder: Path) -> dict[str, float]:
    return {row["patient"]: float(row["dsc"]) for row in _scores(folder) if row["dsc"]}


KINDS = {"summaries": _table, "scores": _volumes, "compare": _compare, "patients": _patients}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, write or verify.

    Raises:
        PipelineError: what does not agree, each on a line.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.claims", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository (default: the working directory)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the tables of README and bundle docs")
    what.add_argument(
        "--verify",
        type=Path,
        metavar="DATA",
        help="score the shipped weights again: the published folder, or a manifest's",
    )
    args = parser.parse_args(argv)
    if not (args.root / RESULTS).is_dir():
        raise PipelineError(f"{args.root / RESULTS}: not found. Run from the repository's root, or pass --root.")
    if args.write:
        for page in pages_with_tables(args.root):
            write_atomically(page, with_results(page.read_text(encoding="utf-8"), args.root).encode())
    found = faults(args.root) + (measured_again(args.root, args.verify) if args.verify else [])
    if found:
        raise PipelineError("claims that do not hold:\n" + "\n".join(f"  {fault}" for fault in found))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
