"""Command line: docs/results -> tables in README, docs and bundle docs; figures checked, shipped ones measured again.

A result is a folder below ``docs/results`` with the ``summary.json`` and ``scores.csv`` of ``pipeline.evaluate``. Those
below ``shipped/`` are of the weights in ``bundles/*/models``. A page shows results between two comments:

    <!-- summaries shipped/basic_unet_native shipped/basic_unet_reference -->
    <!-- end -->

holds a table with a row for each, ``<!-- scores demo -->`` the table of volumes as the command line prints it,
``<!-- compare BASE OTHER -->`` differences to the first, patient by patient, with their interval and how many patients
are better and worse at all, and
``<!-- patients ONE OTHER -->`` a column of DSC for each. The figures in a page's words are those of the results that it
shows so, of those that it names by ``<!-- cites ONE OTHER -->``, and of ``docs/results/published.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, run_cli
from pipeline.scores import Summary, read_scores, read_summary
from pipeline.scripts.files import write_durably
from pipeline.scripts.weights import shipped_sha256

RESULTS = Path("docs/results")
SHIPPED = "shipped"
WITHIN = 0.002
"""By which a mean DSC may differ when it is measured again, by another machine or number format."""
OF_SCORES = ("volumes", "scored", "dsc_mean", "dsc_median", "dsc_mean_95", "dsc_min", "hd95_px_median")
"""Statistics of a summary that must be those of ``scores.csv``."""
BLOCK = re.compile(r"<!-- (summaries|scores|compare|patients) ([^>]+?) -->\n((?:(?!<!--).)*)<!-- end -->", re.DOTALL)
CITED = re.compile(r"<!-- (?:summaries|scores|compare|patients|cites) ([^>]+?) -->")
HALF = re.compile(r"<!--\s*(summaries|scores|compare|patients|end)\b")
FIGURE = re.compile(r"(?<![\d.])0\.(?:[1-9]\d{2,3}|0\d{3})(?!\d)")
"""What a page says of a DSC or a calibration: four digits, or three where published so; others are not looked for."""


def pages(root: Path) -> list[Path]:
    """The pages whose figures must stand in ``docs/results``."""
    study = root / "docs" / "case_report.md"
    return [root / "README.md", *sorted(root.glob("bundles/*/docs/README.md")), *[study] * study.is_file()]


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
    for page in pages_with_tables(root):
        text, name = _text(page), page.relative_to(root)
        try:
            if with_results(text, root) != text:
                found.append(f"{name}: a table is not what docs/results gives; run `make claims`")
            stray = set(FIGURE.findall(BLOCK.sub("", text))) - _may_say(text, root) if page in pages(root) else ()
            found += [f"{name}: {figure} is no figure of a result that it shows or cites" for figure in sorted(stray)]
        except PipelineError as error:
            found.append(f"{name}: {error}")
    for metadata in sorted(root.glob("bundles/*/configs/metadata.json")):
        found += _faults_of_metadata(metadata, known)
    return found


def with_results(text: str, root: Path) -> str:
    """A page with its tables as ``docs/results`` gives them.

    Args:
        text: Markdown.
        root: of the repository.

    Raises:
        PipelineError: it names no result or one that is not there, or one of a table's two comments is missing.
    """
    if HALF.search(BLOCK.sub("", text)):
        raise PipelineError("a table's comment stands alone (expected <!-- KIND NAME ... --> and <!-- end -->).")

    def filled(match: re.Match[str]) -> str:
        kind, names = match[1], match[2].split()
        if not names:
            raise PipelineError(f"<!-- {kind} --> names no result.")
        folders = {name: root / RESULTS / name for name in names}
        for name, folder in folders.items():
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
        if not (manifest.is_file() or (manifest / "manifest.json").is_file()):
            manifest = Path(scratch) / "manifest"
            _run(root, "pipeline.manifest", str(data.resolve()), "--out", str(manifest))
        for name, folder in shipped.items():
            summary, claimed = read_summary(folder), _by_patient(folder)
            out = Path(scratch) / name.replace("/", "_")
            bundles = [option for one in summary["bundles"] for option in ("--bundle", f"bundles/{one['name']}")]
            options = ["--protocol", summary["protocol"], "--split", summary["split"], *["--tta"] * summary["tta"]]
            _run(root, "pipeline.evaluate", "--manifest", str(manifest), *bundles, *options, "--out", str(out))
            again, scores = read_summary(out), _by_patient(out)
            print(f"{name}: claimed {summary['dsc_mean']:.4f}, measured {again['dsc_mean']:.4f}", flush=True)
            if again["manifest_sha256"] != summary["manifest_sha256"]:
                print("  of another manifest; the patients scored are compared")
            if abs(again["dsc_mean"] - summary["dsc_mean"]) > WITHIN:
                off.append(f"{name}: mean DSC {again['dsc_mean']:.4f} (claimed: {summary['dsc_mean']:.4f})")
            error, errors = (_calibration_error(one) for one in (summary, again))
            if not abs(errors - error) <= WITHIN:
                off.append(f"{name}: expected calibration error {errors:.4f} (claimed: {error:.4f})")
            for patient in sorted(claimed.keys() | scores.keys()):
                one, other = (found.get(patient, math.nan) for found in (claimed, scores))
                if not abs(one - other) <= WITHIN:
                    off.append(f"{name}: {patient} {other:.4f} (claimed: {one:.4f})")
    return off


def _run(root: Path, module: str, *options: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-m", module, *options], cwd=root, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise PipelineError(f"python -m {module} {' '.join(options)}:\n{done.stderr.strip()}")


def _text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PipelineError(f"{page}: no readable page ({error}). Restore it.") from error


def _calibration_error(summary: Summary) -> float:
    return float((summary.get("calibration") or {}).get("expected_calibration_error", math.nan))


def _by_patient(folder: Path) -> dict[str, float]:
    return {score.patient: score.dsc for score in read_scores(folder) if score.dsc is not None}


def _faults_of_result(name: str, folder: Path, root: Path) -> list[str]:
    """A summary that is not of its scores, or one of shipped weights that is not of them or not of unseen patients."""
    from pipeline.metrics import summarise

    try:
        summary, scores = read_summary(folder), read_scores(folder)
    except PipelineError as error:
        return [str(error)]
    again = summarise(scores, summary["seed"])
    wrong = [key for key in OF_SCORES if not _close(summary.get(key), again[key])]
    found = [f"{name}: {', '.join(wrong)} of the summary is not that of scores.csv"] if wrong else []
    if not name.startswith(f"{SHIPPED}/"):
        return found
    if not summary["bundles"] or any("fold" in bundle for bundle in summary["bundles"]) or summary["seen_in_training"]:
        found.append(f"{name}: is not of shipped weights on unseen patients")
    for bundle in summary["bundles"]:
        weights = root / "bundles" / bundle["name"] / "models" / "model.pt"
        if _sha256(weights) != bundle["weights_sha256"]:
            found.append(f"{name}: is of other weights than {weights.relative_to(root)}")
    return found


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and len(one) == len(other):
        return all(map(_close, one, other))
    return one == other or (None not in (one, other) and math.isclose(one, other, abs_tol=1e-9))


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _faults_of_metadata(metadata: Path, known: dict[str, Path]) -> list[str]:
    """``eval_metrics`` that are not those of the bundle's results, or another hash than that of its weights."""
    bundle = metadata.parent.parent
    content = json.loads(metadata.read_bytes())
    metrics = content.get("eval_metrics") or {}
    found = []
    actual = _sha256(bundle / "models" / "model.pt")
    if shipped_sha256(bundle) not in (None, actual):
        found.append(f"{bundle.name}: metadata names weights of another SHA-256 than {actual} of models/model.pt")
    for key, value in metrics.items():
        statistic, _, protocol = key.rpartition("_")
        folder = known.get(f"{SHIPPED}/{bundle.name}_{protocol}")
        summary = read_summary(folder) if folder else {}
        same = (
            summary.get("protocol") == protocol
            and summary["split"] == "validation"
            and not summary["tta"]
            and [one["name"] for one in summary["bundles"]] == [bundle.name]
            and round(summary.get(statistic, math.nan), 4) == value
        )
        if not same:
            found.append(f"{bundle.name}: metadata says {key} {value}, docs/results does not")
    return found


def _may_say(text: str, root: Path) -> set[str]:
    """Figures that a page may say: of its own tables, of results that it shows or cites, and published ones.

    Raises:
        PipelineError: it names a result that is not there, or a file of one is unreadable.
    """
    figures = {figure for block in BLOCK.finditer(text) for figure in FIGURE.findall(block[3])}
    for name in {name for names in CITED.findall(text) for name in names.split()}:
        folder = root / RESULTS / name
        summary = read_summary(folder)
        found = [*summary.values(), *(summary.get("calibration") or {}).values(), *(summary["dsc_mean_95"] or [])]
        values = [*(value for value in found if isinstance(value, float)), *_by_patient(folder).values()]
        figures |= {f"{value:.4f}" for value in values}
    for value in _published(root):
        figures |= {f"{value:.4f}", f"{value:.3f}"}
    return figures


def _published(root: Path) -> list[float]:
    path = root / RESULTS / "published.json"
    try:
        return [value for value in json.loads(path.read_bytes()).values() if isinstance(value, float)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError) as error:
        raise PipelineError(f"{path}: no readable figures ({error}). Restore it.") from error


def _table(folders: Mapping[str, Path]) -> str:
    lines = ["| | mean DSC (95 % interval) | median | lowest | patients |", "|---|---|---|---|---|"]
    summaries = {name: read_summary(folder) for name, folder in folders.items()}
    said = [_what(summary) for summary in summaries.values()]
    for what, (name, summary) in zip(said, summaries.items(), strict=True):
        alike = f" (`{name}`)" if said.count(what) > 1 else ""
        low, high = summary["dsc_mean_95"]
        lines.append(
            f"| {what}{alike} | {summary['dsc_mean']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {summary['dsc_median']:.4f} | {summary['dsc_min']:.4f} | {summary['scored']} |"
        )
    return "\n".join(lines) + "\n"


def _what(summary: Summary) -> str:
    names = " + ".join(dict.fromkeys(bundle["name"] for bundle in summary["bundles"]))
    folds = {bundle["fold"] for bundle in summary["bundles"] if "fold" in bundle}
    parts = [names, *([f"{len(folds)} folds"] if folds else []), f"{summary['protocol']} protocol"]
    return ", ".join(parts + ["flips"] * summary["tta"])


def _volumes(folders: Mapping[str, Path]) -> str:
    from pipeline.scores import table

    return "\n".join(
        f"```\n{table(read_scores(folder), read_summary(folder)['seed'])}\n```\n" for folder in folders.values()
    )


def _compare(folders: Mapping[str, Path]) -> str:
    from pipeline.metrics import paired

    head = ("", "mean DSC", "median", "lowest", "difference (95 % interval)", "better, worse")
    lines = ["|" + "|".join(f" {name} " if name else " " for name in head) + "|", "|---" * len(head) + "|"]
    columns = _columns(folders)
    base = next(iter(columns.values()))
    for name, dsc in columns.items():
        values = list(dsc.values())
        line = f"| {name} | {statistics.mean(values):.4f} | {statistics.median(values):.4f} | {min(values):.4f} |"
        if dsc is not base:
            apart = paired(base, dsc, read_summary(folders[name])["seed"])
            low, high = apart["mean_95"]
            line += f" {apart['mean']:+.4f} ({low:+.4f} to {high:+.4f}) | {apart['better']}, {apart['worse']} |"
        else:
            line += " | |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _patients(folders: Mapping[str, Path]) -> str:
    columns = _columns(folders)
    base = next(iter(columns.values()))
    lines = ["| patient | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for patient in sorted(base, key=lambda name: base[name]):
        lines.append(f"| {patient} | {' | '.join(f'{dsc[patient]:.4f}' for dsc in columns.values())} |")
    return "\n".join(lines) + "\n"


def _columns(folders: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """DSC by patient of results that are put side by side.

    Raises:
        PipelineError: they are of other patients, or of none.
    """
    columns = {name: _by_patient(folder) for name, folder in folders.items()}
    if len({frozenset(dsc) for dsc in columns.values()}) > 1 or not all(columns.values()):
        raise PipelineError(f"{', '.join(columns)}: not of the same patients, or of none.")
    return columns


KINDS = {"summaries": _table, "scores": _volumes, "compare": _compare, "patients": _patients}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, write or verify.

    Raises:
        PipelineError: what does not agree, each on a line.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.claims", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository (default: the working directory)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the tables of README, docs and bundle docs")
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
        written = {}
        for page in pages_with_tables(args.root):
            try:
                written[page] = with_results(_text(page), args.root)
            except PipelineError as error:
                raise PipelineError(f"{page}: {error}") from error
        for page, text in written.items():
            write_durably(page, text.encode())
    found = faults(args.root) + (measured_again(args.root, args.verify) if args.verify else [])
    if found:
        raise PipelineError("claims that do not hold:\n" + "\n".join(f"  {fault}" for fault in found))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
