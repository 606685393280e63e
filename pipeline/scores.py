"""The results of an evaluation as files, there and back, and as text: scores.csv, summary.json, the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.records import VolumeScore
from pipeline.scripts.files import write_durably

SUMMARY = "summary.json"
SCORES = "scores.csv"
MASKS, VOLUMES, MAPS = "masks", "volumes", "uncertainty"
"""Folders of an evaluation: predicted masks, the images and labels that they belong to, uncertainty maps."""
Summary = dict[str, Any]
FROM_SCORES = ("scored", "dsc_mean", "dsc_median", "dsc_mean_95", "dsc_min")
"""Come into a summary at the end, when all is scored."""
NEEDED = (
    *("command", "seed", "manifest_sha256", "bundles", "protocol", "tta", "split", "seen_in_training"),
    *FROM_SCORES,
)
_FORMS: dict[str, Callable[[Any], bool]] = {
    "seed": lambda value: type(value) is int and value >= 0,
    "protocol": lambda value: isinstance(value, str),
    "manifest_sha256": lambda value: isinstance(value, str),
    "seen_in_training": lambda value: isinstance(value, list),
    "dsc_mean_95": lambda value: isinstance(value, list) and len(value) == 2,
    "bundles": lambda value: (
        isinstance(value, list)
        and all(isinstance(one, dict) and isinstance(one.get("weights_sha256"), str) and "name" in one for one in value)
    ),
}
RATIOS, COUNTS = ("dsc", "hd95_px", "sensitivity", "precision"), ("tp_voxels", "fp_voxels", "fn_voxels")
COLUMNS = (
    "patient",
    "dsc",
    "hd95_px",
    "sensitivity",
    "precision",
    "tp_voxels",
    "fp_voxels",
    "fn_voxels",
    "lesion_voxels",
)


def write_results(out: Path, scores: Sequence[VolumeScore], provenance: dict[str, Any]) -> None:
    """Write ``scores.csv`` (a row a volume, empty cells where a value is not defined) and ``summary.json``.

    The column ``agreement`` stands there where uncertainty was asked for.

    Args:
        out: folder, made where it is missing.
        scores: one a volume.
        provenance: what the figures came from; goes into the summary.

    Raises:
        PipelineError: the disk refuses.
    """
    import pandas as pd

    from pipeline.metrics import summarise

    rows = [{**asdict(score), "lesion_voxels": score.lesion_voxels} for score in scores]
    columns = [*COLUMNS, *(["agreement"] if any(score.agreement is not None for score in scores) else [])]
    table = pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")
    write_durably(out / SCORES, table.encode())
    summary = {**provenance, **summarise(scores, provenance["seed"])}
    write_durably(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: Path) -> Summary:
    """The ``summary.json`` of an evaluation.

    Args:
        folder: of the evaluation.

    Raises:
        PipelineError: missing, unreadable, or without a key that is needed.
    """
    path = folder / SUMMARY
    try:
        summary: Summary = json.loads(path.read_bytes())
        missing = [key for key in NEEDED if key not in summary]
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(f"{path}: no readable summary ({error}). Write it by pipeline.evaluate.") from error
    if missing == list(FROM_SCORES):
        raise PipelineError(f"{path}: of an evaluation that did not come to its end. Run it again.")
    if missing:
        raise PipelineError(f"{path}: {', '.join(missing)} missing. Write it by pipeline.evaluate.")
    odd = [key for key, fits in _FORMS.items() if not fits(summary[key])]
    if odd:
        raise PipelineError(f"{path}: {', '.join(odd)} of another form than pipeline.evaluate writes. Evaluate again.")
    return summary


def read_scores(folder: Path) -> list[VolumeScore]:
    """The ``scores.csv`` of an evaluation, without reliability.

    Args:
        folder: of the evaluation.

    Raises:
        PipelineError: missing or unreadable.
    """
    path = folder / SCORES
    scores = []
    try:
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                dsc, hd95, sensitivity, precision = (float(row[key]) if row[key] else None for key in RATIOS)
                tp, fp, fn = (int(row[key]) for key in COUNTS)
                agreement = float(row["agreement"]) if row.get("agreement") else None
                scores.append(
                    VolumeScore(row["patient"], dsc, hd95, sensitivity, precision, tp, fp, fn, agreement=agreement)
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path}: no readable scores ({error}). Write them by pipeline.evaluate.") from error
    return scores


def table(scores: Sequence[VolumeScore], seed: int) -> str:
    """The scores as text, worst first, with mean, median and interval.

    Args:
        scores: one a volume.
        seed: of the bootstrap.
    """
    from pipeline.metrics import summarise

    width = max(len("patient"), *(len(score.patient) for score in scores))
    lines = [
        f"{'patient':<{width}}  {'DSC':>6}  {'HD95':>6}  {'sens.':>6}  {'prec.':>6}  {'TP':>7}  {'FP':>7}  {'FN':>7}"
    ]
    lines += [
        f"{s.patient:<{width}}  {_cell(s.dsc, 4)}  {_cell(s.hd95_px, 2)}  {_cell(s.sensitivity, 4)}"
        f"  {_cell(s.precision, 4)}  {s.tp_voxels:>7}  {s.fp_voxels:>7}  {s.fn_voxels:>7}"
        for s in sorted(scores, key=lambda score: -1.0 if score.dsc is None else score.dsc)
    ]
    summary = summarise(scores, seed)
    if summary["scored"]:
        low, high = summary["dsc_mean_95"]
        lines.append(
            f"mean DSC {summary['dsc_mean']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"median {summary['dsc_median']:.4f}, {summary['scored']} of {summary['volumes']} volumes"
        )
    if summary["undefined"]:
        lines.append(f"DSC not defined (no lesion, none predicted): {', '.join(summary['undefined'])}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return f"{'-':>6}" if value is None else f"{value:>6.{digits}f}"
