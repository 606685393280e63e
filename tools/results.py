"""Write the tables of README, docs and bundle docs from docs/results, and check the claims of the shipped weights.

``scores.csv`` holds a row for each result and patient. ``provenance.json`` holds the weights and settings of each
result. Results named ``shipped/...`` come from the weights in ``bundles/*/models``. A page shows results between two
comments:

    <!-- summaries shipped/basic_unet_native shipped/basic_unet_reference -->
    <!-- end -->

``summaries`` gives a row for each result. ``scores`` gives the table that an evaluation prints. ``compare`` gives the
differences to the first result, patient by patient. ``patients`` gives a column of DSC for each result. ``sizes``
groups the patients of one result by the size of the lesion. ``calibration`` gives the expected calibration error of
each result. ``shape`` gives a table of ``tools.shape_tables``.

A name with ``*`` joins the results that it fits, such as the folds of a cross-validation, into one:
``recipe/slices_80000_fold_*``. A label for the table may follow a name, with ``~`` for spaces:
``case_report/dice_native:Dice~loss``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.scoring.results import COUNT_COLUMNS, RATIO_COLUMNS, VolumeScore, read_scores, read_summary, scores_table
from pipeline.scoring.statistics import paired, summarise
from pipeline.scripts.files import sha256_file, write_durably
from tools.shape_tables import SHAPES, read_shapes, shape_table, write_chart, write_charts

RESULTS, TABLE, PROVENANCE = "docs/results", "docs/results/scores.csv", "docs/results/provenance.json"
COLUMNS = ("result", "patient", *RATIO_COLUMNS, *COUNT_COLUMNS, "agreement")
OF_BUNDLE, OF_TRAINING = ("name", "fold", "weights_sha256", "settings"), ("seed", "device", "amp", "config")
"""Keys of the provenance about each bundle of an evaluation, and about the bundle's training."""
WITHIN = 0.002
"""The largest allowed difference of a figure that another machine or number format measures again."""
KINDS = "summaries|scores|compare|patients|sizes|calibration|shape"
BLOCK = re.compile(rf"<!-- ({KINDS}) ([^>]+?) -->\n((?:(?!<!--).)*)<!-- end -->", re.DOTALL)
HALF = re.compile(rf"<!--\s*({KINDS}|end)\b")
SIZES = {"under 8,000": (0, 8_000), "8,000 to 25,000": (8_000, 25_000), "25,000 and more": (25_000, math.inf)}
"""Group of patients -> the range of voxels in the true lesion."""
CHART, CHARTED = "docs/images/out_of_fold.svg", "out_of_fold/default"
"""The file of the chart of lesion size against DSC, and the start of its results' names."""
SUMMARY_HEAD = ("mean DSC (95 % interval)", "median", "lowest", "patients")
Result = dict[str, Any]
"""A result: its provenance and statistics, its ``scores``, and ``dsc`` by patient."""


def read_results(root: Path) -> dict[str, Result]:
    """All results by name.

    Args:
        root: The repository's folder.

    Raises:
        PipelineError: The table or the provenance is unreadable, or they hold different results.
    """
    scores = read_scores(root / RESULTS)
    try:
        names = pd.read_csv(root / TABLE, dtype=str, na_filter=False)["result"].tolist()
        provenance: dict[str, Result] = json.loads((root / PROVENANCE).read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(f"{root / RESULTS}: no readable results ({error}). Restore them.") from error
    if odd := {*names} ^ {*provenance}:
        raise PipelineError(
            f"{', '.join(sorted(odd))}: found in only one of {TABLE} and {PROVENANCE}. Restore the other."
        )
    if len({(name, score.patient) for name, score in zip(names, scores, strict=True)}) < len(names):
        raise PipelineError(f"{root / TABLE}: has a patient of one result twice.")
    parts = {name: [score for score, of in zip(scores, names, strict=True) if of == name] for name in provenance}
    return {name: _with_statistics(part, provenance[name]) for name, part in parts.items()}


def _with_statistics(scores: Sequence[VolumeScore], provenance: Mapping[str, Any]) -> Result:
    dsc = {score.patient: score.dsc for score in scores if score.dsc is not None}
    return {**provenance, **summarise(scores, provenance["seed"]), "scores": scores, "dsc": dsc}


def _evaluated(folder: Path) -> tuple[Sequence[VolumeScore], dict[str, Any]]:
    """The scores in an evaluation's folder, and those entries of its summary that are no statistics of them."""
    summary, scores = read_summary(folder), read_scores(folder)
    found = summarise(scores, summary["seed"])
    is_one = found["scored"] == summary["scored"] > 0 and math.isclose(found["dsc_mean"], summary["dsc_mean"])
    if not is_one or len({score.patient for score in scores}) < len(scores):
        raise PipelineError(f"{folder}: no DSC, a patient twice, or a summary of other scores. Evaluate again.")
    provenance = {key: value for key, value in summary.items() if key not in found and value is not None}
    provenance["bundles"] = [
        {**_kept(one, OF_BUNDLE), "training": _kept(one.get("training") or {}, OF_TRAINING)}
        for one in summary["bundles"]
    ]
    provenance["expected_calibration_error"] = (summary.get("calibration") or {}).get("expected_calibration_error")
    return scores, provenance


def _kept(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if values.get(key) not in (None, {})}


def _add(root: Path, name: str, folder: Path) -> None:
    """Add an evaluation's folder as a result. It replaces an earlier one with the same name."""
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
        raise PipelineError(f"{name}: no name of a result (expected one like shipped/basic_unet_native).")
    new, entry = _evaluated(folder)
    scores = {of: result["scores"] for of, result in read_results(root).items()} | {name: new}
    rows = [{"result": of, **asdict(score)} for of in sorted(scores) for score in scores[of]]
    provenance = json.loads((root / PROVENANCE).read_bytes()) | {name: entry}
    entries = []
    for of in sorted(provenance):
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in provenance[of].items()]
        entries.append(f"  {json.dumps(of)}: {{\n" + ",\n".join(lines) + "\n  }")
    table = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
    write_durably(root / TABLE, table.encode())
    write_durably(root / PROVENANCE, ("{\n" + ",\n".join(entries) + "\n}\n").encode())


def _with_tables(root: Path, page: Path, results: Mapping[str, Result]) -> str:
    """The text of a page with tables from the results."""

    def filled(block: re.Match[str]) -> str:
        if block[1] == "shape":
            return f"<!-- shape {block[2]} -->\n{_markdown(*shape_table(block[2], read_shapes(root)))}\n<!-- end -->"
        kind, parts = block[1], [name.partition(":") for name in block[2].split()]
        shown = {}
        for name, _, label in parts:
            found = [results[one] for one in results if fnmatchcase(one, name)]
            if not found:
                raise PipelineError(f"{page}: {name} is no result of {TABLE}.")
            try:
                joined = _joined(found)
            except ValueError as error:
                raise PipelineError(f"{page}: the results {name} {error}.") from error
            if kind == "calibration" and joined["expected_calibration_error"] is None:
                raise PipelineError(f"{page}: {name} has no calibration of its own.")
            shown[label.replace("~", " ") or name] = joined | {"label": label.replace("~", " ")}
        if kind in ("compare", "patients") and len({frozenset(result["dsc"]) for result in shown.values()}) > 1:
            raise PipelineError(f"{page}: {', '.join(shown)} are not of the same patients.")
        return f"<!-- {kind} {block[2]} -->\n{TABLES[kind](shown)}\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    if HALF.search(BLOCK.sub("", text)):
        raise PipelineError(f"{page}: a table lacks one of its comments (<!-- KIND NAME ... --> and <!-- end -->).")
    return BLOCK.sub(filled, text)


def _summaries(shown: Mapping[str, Result]) -> str:
    kinds = {name: _kind(result) for name, result in shown.items()}
    rows = []
    for name, result in shown.items():
        alike = f" (`{name}`)" if [*kinds.values()].count(kinds[name]) > 1 else ""
        rows.append([kinds[name] + alike, *_row(result)])
    return _markdown(["", *SUMMARY_HEAD], *rows)


def _row(result: Result) -> list[str]:
    mean, median, lowest = _figures(result)
    interval = " to ".join(f"{end:.4f}" for end in result["dsc_mean_95"])
    return [f"{mean} ({interval})", median, lowest, str(result["scored"])]


def _joined(results: Sequence[Result]) -> Result:
    """Results of different patients as one result, with the first one's seed and protocol.

    Raises:
        ValueError: They share patients, or are not scored by one protocol.
    """
    if len(results) == 1:
        return results[0]
    if len({patient for result in results for patient in result["dsc"]}) < sum(one["scored"] for one in results):
        raise ValueError("share patients")
    if len({(result["protocol"], result["tta"]) for result in results}) > 1:
        raise ValueError("are not scored alike")
    scores = [score for result in results for score in result["scores"]]
    bundles = [bundle for result in results for bundle in result["bundles"]]
    return _with_statistics(scores, {**results[0], "bundles": bundles, "expected_calibration_error": None})


def _sizes(shown: Mapping[str, Result]) -> str:
    joined = next(iter(shown.values()))
    rows = []
    for name, (low, high) in SIZES.items():
        scores = [score for score in joined["scores"] if low <= score.lesion_voxels < high]
        group = _with_statistics(scores, {"seed": joined["seed"]})
        if group["scored"]:
            rows.append([name, *_row(group)])
    return _markdown(["lesion, voxels", *SUMMARY_HEAD], *rows)


def _kind(result: Result) -> str:
    if result.get("label"):
        return str(result["label"])
    folds = len({bundle["fold"] for bundle in result["bundles"] if "fold" in bundle})
    parts = [" + ".join(_names(result)), *[f"{folds} folds"] * bool(folds), f"{result['protocol']} protocol"]
    return ", ".join(parts + ["flips"] * result["tta"])


def _names(result: Result) -> list[str]:
    return [*dict.fromkeys(bundle["name"] for bundle in result["bundles"])]


def _figures(result: Result) -> list[str]:
    return [f"{result[key]:.4f}" for key in ("dsc_mean", "dsc_median", "dsc_min")]


def _printed(shown: Mapping[str, Result]) -> str:
    return "\n\n".join(f"```\n{scores_table(result['scores'], result)}\n```" for result in shown.values())


def _compare(shown: Mapping[str, Result]) -> str:
    (first, base), *others = shown.items()
    rows = [[first, *_figures(base), "", ""]]
    for name, result in others:
        apart = paired(base["dsc"], result["dsc"], result["seed"])
        interval = " to ".join(f"{end:+.4f}" for end in apart["mean_95"])
        difference, counts = f"{apart['mean']:+.4f} ({interval})", f"{apart['better']}, {apart['worse']}"
        rows.append([name, *_figures(result), difference, counts])
    return _markdown(["", "mean DSC", "median", "lowest", "difference (95 % interval)", "better, worse"], *rows)


def _patients(shown: Mapping[str, Result]) -> str:
    columns = [result["dsc"] for result in shown.values()]
    worst_first = sorted(columns[0], key=columns[0].__getitem__)
    rows = [[patient, *(f"{dsc[patient]:.4f}" for dsc in columns)] for patient in worst_first]
    return _markdown(["patient", *shown], *rows)


def _calibration(shown: Mapping[str, Result]) -> str:
    errors = {name: f"{result['expected_calibration_error']:.4f}" for name, result in shown.items()}
    rows = [[name, f"{result['scored']}", errors[name]] for name, result in shown.items()]
    return _markdown(["", "patients", "expected calibration error"], *rows)


def _markdown(*rows: Sequence[str]) -> str:
    head, *body = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


TABLES = {
    "summaries": _summaries,
    "scores": _printed,
    "compare": _compare,
    "patients": _patients,
    "sizes": _sizes,
    "calibration": _calibration,
}


def _write_chart(root: Path, results: Mapping[str, Result]) -> None:
    """Write the chart of lesion size against DSC."""
    from pipeline.pages.charts import sizes_svg

    charted = [result for name, result in results.items() if name.startswith(CHARTED)]
    if not charted:
        return
    joined = _joined(charted)
    voxels = {score.patient: score.lesion_voxels for score in joined["scores"]}
    names = _names(joined)
    label = names[0] if len(names) == 1 else f"average of {len(names)} networks"
    chart = sizes_svg({f"{label}, out of fold": joined["dsc"]}, voxels)
    write_chart(root / CHART, chart)


def _pages(root: Path) -> list[Path]:
    """Paths of README, docs and bundle docs."""
    return [
        *sorted(root.glob("README*.md")),
        *sorted(root.glob("docs/**/*.md")),
        *sorted(root.glob("bundles/*/docs/README.md")),
    ]


def _faults(root: Path) -> list[str]:
    """A message for each difference between results, pages, weights and metadata."""
    results, found = read_results(root), []
    for page in _pages(root):
        try:
            if _with_tables(root, page, results) != page.read_text(encoding="utf-8"):
                found.append(f"{page}: a table is not what {RESULTS} gives. Run `make claims`.")
        except PipelineError as error:
            found.append(str(error))
    shipped = _shipped(results)
    for name, result in shipped.items():
        if result["seen_in_training"] or any("fold" in bundle for bundle in result["bundles"]):
            found.append(f"{name}: is not of shipped weights on unseen patients.")
        for bundle in result["bundles"]:
            weights = root / "bundles" / bundle["name"] / "models" / "model.pt"
            if not weights.is_file() or sha256_file(weights) != bundle["weights_sha256"]:
                found.append(f"{name}: is of other weights than {weights}.")
    for metadata in sorted(root.glob("bundles/*/configs/metadata.json")):
        own = [one for one in shipped.values() if _names(one) == [metadata.parents[1].name] and not one["tta"]]
        expected = {f"dsc_mean_{one['protocol']}": round(one["dsc_mean"], 4) for one in own}
        said = json.loads(metadata.read_bytes()).get("eval_metrics") or {}
        if said != expected:
            found.append(f"{metadata}: eval_metrics {said} (by {TABLE}: {expected}).")
    return found


def _shipped(results: Mapping[str, Result]) -> dict[str, Result]:
    return {name: result for name, result in results.items() if name.startswith("shipped/")}


def _measured_again(root: Path, data: Path) -> list[str]:
    """A message for each figure of the shipped weights that differs from a new measurement by more than ``WITHIN``."""
    off, manifest = [], data.resolve()
    if not (shipped := _shipped(read_results(root))):
        raise PipelineError(f"{root / TABLE}: holds no result of shipped weights (expected shipped/NAME).")
    with tempfile.TemporaryDirectory() as scratch:
        if not (manifest.is_file() or (manifest / "manifest.json").is_file()):
            manifest = Path(scratch) / "manifest"
            _run(root, "pipeline.manifest", str(data.resolve()), "--out", str(manifest))
        for name, claimed in shipped.items():
            out = Path(scratch) / name
            bundles = [option for bundle in _names(claimed) for option in ("--bundle", f"bundles/{bundle}")]
            # The section that a patient is in may differ from the claim's manifest.
            patients = ["--split", "all", "--patients", *sorted(claimed["dsc"])]
            options = ["--protocol", claimed["protocol"], *patients, *["--tta"] * claimed["tta"]]
            _run(root, "pipeline.evaluate", "--manifest", str(manifest), *bundles, *options, "--out", str(out))
            measured = _with_statistics(*_evaluated(out))
            print(f"{name}: claimed {claimed['dsc_mean']:.4f}, measured {measured['dsc_mean']:.4f}", flush=True)
            was, now = _claims(claimed), _claims(measured)
            for figure in sorted(was.keys() | now.keys()):
                one, other = was.get(figure, math.nan), now.get(figure, math.nan)
                if not abs(one - other) <= WITHIN:
                    off.append(f"{name}: {figure} {other:.4f} (claimed: {one:.4f})")
    return off


def _claims(result: Result) -> dict[str, float]:
    error = result["expected_calibration_error"]
    known = {} if error is None else {"expected calibration error": error}
    return {"mean DSC": result["dsc_mean"], **known, **result["dsc"]}


def _run(root: Path, module: str, *options: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", module, *options]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        raise PipelineError(f"python -m {module} {' '.join(options)}:\n{done.stderr.strip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check the results, write the tables, measure again, or add a result.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        PipelineError: Claims are wrong, with a line for each, or an option names a missing file.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--root", type=Path, default=Path(), help="the repository's folder (default: the working directory)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the tables of README, docs and bundle docs")
    what.add_argument(
        "--verify",
        type=Path,
        metavar="DATA",
        help="score the shipped weights again on a folder of slices or a manifest",
    )
    what.add_argument("--add", nargs=2, metavar=("NAME", "FOLDER"), help="add an evaluation's folder as a result")
    args = parser.parse_args(argv)
    if args.add:
        _add(args.root, args.add[0], Path(args.add[1]))
        return 0
    if args.write:
        results = read_results(args.root)
        for page, text in [(page, _with_tables(args.root, page, results)) for page in _pages(args.root)]:
            write_durably(page, text.encode())
        _write_chart(args.root, results)
        if (args.root / SHAPES).is_file():
            write_charts(args.root)
    found = _faults(args.root) + (_measured_again(args.root, args.verify) if args.verify else [])
    if found:
        raise PipelineError("claims that do not hold:\n" + "\n".join(f"  {fault}" for fault in found))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
