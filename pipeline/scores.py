"""The results of an evaluation as files and as text: scores.csv, summary.json, the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.files import write_atomically
from pipeline.records import VolumeScore

SUMMARY = "summary.json"
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
    table = pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n")
    write_atomically(out / "scores.csv", table.encode())
    summary = {**provenance, **summarise(scores, provenance["seed"])}
    write_atomically(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


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
