"""Write and read the results of an evaluation: scores.csv, slices.csv, summary.json and a printed table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import SUMMARY_NAME
from pipeline.scripts.files import write_durably

SCORES_NAME, SLICES_NAME = "scores.csv", "slices.csv"
Summary = dict[str, Any]


@dataclass(frozen=True)
class VolumeScore:
    """Agreement of one predicted volume with its truth: a row of ``scores.csv``.

    Args:
        patient: The patient's id.
        dsc: Dice similarity coefficient, 0 to 1; None if it is not defined, because truth and prediction are empty.
        hd95_px: 95th percentile of the symmetric surface distance in voxels, as medpy computes it; None if either mask
            is empty.
        sensitivity: TP / (TP + FN), 0 to 1; None if the truth is empty.
        precision: TP / (TP + FP), 0 to 1; None if the prediction is empty.
        tp_voxels: Number of voxels in both masks (TP).
        fp_voxels: Number of voxels only in the prediction (FP).
        fn_voxels: Number of voxels only in the truth (FN).
        hd95_mm: 95th percentile of the surface distance in mm, the larger of both directions, as MONAI computes it;
            None if either mask is empty or the spacing is not known.
        surface_dice_2mm: Share of both surfaces that lies within 2 mm of the other, 0 to 1, as MONAI computes it; None
            if both masks are empty or the spacing is not known.
        volume_difference: (predicted - true) / true volume, -1 or more; None if the truth is empty.
        agreement: Mean DSC between the masks of all networks and flips, 0 to 1; None for a single network without
            flips, or if all these masks are empty.
        seen: Whether weights that predicted the patient were trained on this patient; None if that is not known.
        reliability: For each tenth of probability: voxels, sum of their probabilities, lesion voxels. Empty if no
            probability is known. It is not a column.
        slices: For each slice: its number from 1, TP, FP, FN. Empty if they were not asked for. They are rows of
            ``slices.csv``, not a column.
    """

    patient: str
    dsc: float | None
    hd95_px: float | None
    sensitivity: float | None
    precision: float | None
    tp_voxels: int
    fp_voxels: int
    fn_voxels: int
    hd95_mm: float | None = None
    surface_dice_2mm: float | None = None
    volume_difference: float | None = None
    agreement: float | None = None
    seen: bool | None = None
    reliability: tuple[tuple[int, float, int], ...] = ()
    slices: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def lesion_voxels(self) -> int:
        """Number of voxels in the truth."""
        return self.tp_voxels + self.fn_voxels

    @property
    def predicted_voxels(self) -> int:
        """Number of voxels in the prediction."""
        return self.tp_voxels + self.fp_voxels


RATIO_COLUMNS = ("dsc", "hd95_px", "sensitivity", "precision")
COUNT_COLUMNS = ("tp_voxels", "fp_voxels", "fn_voxels")
OPTIONAL_COLUMNS = ("hd95_mm", "surface_dice_2mm", "volume_difference", "agreement")
SCORE_COLUMNS = ("patient", *RATIO_COLUMNS, *COUNT_COLUMNS, "lesion_voxels")
"""Columns of ``scores.csv``; ``VolumeScore`` explains them. Those of ``OPTIONAL_COLUMNS`` with a value follow."""
SEEN_COLUMN = "seen"
"""The last column of ``scores.csv``: true, false, or empty if not known. Version 0.1.0 does not write it."""
_SEEN = {"true": True, "false": False, "": None}
GROUPS: dict[bool | None, str] = {False: "not trained on", True: "trained on", None: "not known"}
"""Names of groups of patients, by whether the weights were trained on them, in the order of tables."""
SLICE_COLUMNS = ("patient", "slice", "tp", "fp", "fn", "dsc")
"""Columns of ``slices.csv``. Slices are counted from 1, the lowest, as in pictures. TP, FP and FN are pixels."""
_STATISTICS = ["scored", "dsc_mean", "dsc_median", "dsc_mean_95", "dsc_min"]
"""Keys that a summary gets at the end, when all volumes are scored."""
_SUMMARY_KEYS = [
    *("command", "seed", "manifest_sha256", "bundles", "protocol", "tta", "split", "seen_in_training"),
    *_STATISTICS,
]
_SUMMARY_FORMS: dict[str, Callable[[Any], bool]] = {
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


def write_scores(folder: Path, scores: Sequence[VolumeScore]) -> None:
    """Write ``scores.csv``: one row for each volume. A cell is empty if its value is not defined."""
    import pandas as pd

    words = {value: word for word, value in _SEEN.items()}
    rows = [{**asdict(score), "lesion_voxels": score.lesion_voxels, SEEN_COLUMN: words[score.seen]} for score in scores]
    optional = [name for name in OPTIONAL_COLUMNS if any(row[name] is not None for row in rows)]
    table = pd.DataFrame(rows, columns=[*SCORE_COLUMNS, *optional, SEEN_COLUMN])
    write_durably(folder / SCORES_NAME, table.to_csv(index=False, lineterminator="\n").encode())


def write_slices(folder: Path, scores: Sequence[VolumeScore]) -> None:
    """Write ``slices.csv``: one row for each slice. Without slices, remove the file of an earlier evaluation."""
    import pandas as pd

    path = folder / SLICES_NAME
    rows = [(score.patient, *counts, dsc_of(*counts[1:])) for score in scores for counts in score.slices]
    if not rows:
        path.unlink(missing_ok=True)
        return
    table = pd.DataFrame(rows, columns=list(SLICE_COLUMNS)).to_csv(index=False, lineterminator="\n")
    write_durably(path, table.encode())


def dsc_of(tp: int, fp: int, fn: int) -> float | None:
    """The DSC of true positive, false positive and false negative voxels; None if there are none of them.

    Source: Dice, Ecology 26 (1945).

    Examples:
        >>> dsc_of(tp=3, fp=1, fn=1)
        0.75
    """
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json`` into the folder of an evaluation."""
    write_durably(folder / SUMMARY_NAME, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: str | Path) -> Summary:
    """The content of an evaluation's ``summary.json``.

    Args:
        folder: The evaluation's folder.

    Raises:
        PipelineError: The file is missing or unreadable, lacks a key, or is of an evaluation that did not finish.

    Examples:
        >>> read_summary("runs/basic_unet")["protocol"]
        'native'
    """
    path = Path(folder) / SUMMARY_NAME
    try:
        summary: Summary = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(f"{path}: no readable summary ({error}). Write it with lgg-flair evaluate.") from error
    missing = [key for key in _SUMMARY_KEYS if key not in summary]
    if missing == _STATISTICS:
        raise PipelineError(f"{path}: its evaluation did not finish. Run the evaluation again.")
    odd = missing + [key for key, fits in _SUMMARY_FORMS.items() if key in summary and not fits(summary[key])]
    if odd:
        raise PipelineError(
            f"{path}: {', '.join(odd)} missing or changed (expected as lgg-flair evaluate writes them). Run the "
            "evaluation again."
        )
    return summary


def read_scores(folder: str | Path) -> list[VolumeScore]:
    """The scores in an evaluation's ``scores.csv``, without their reliability and slices.

    Args:
        folder: The evaluation's folder.

    Raises:
        PipelineError: The file is missing or unreadable.

    Examples:
        >>> import pipeline
        >>> scores = pipeline.read_scores("runs/basic_unet")
        >>> all(0 <= score.dsc <= 1 for score in scores if score.dsc is not None)
        True
    """
    import pandas as pd

    path = Path(folder) / SCORES_NAME
    try:
        with warnings.catch_warnings(action="error"):  # pandas only warns when it drops cells of a long row
            table = pd.read_csv(path, dtype=str, na_filter=False, index_col=False, encoding="utf-8")
            return [_score_of(row) for row in table.to_dict("records")]
    except (OSError, ValueError, KeyError, TypeError, Warning) as error:
        raise PipelineError(f"{path}: no readable scores ({error}). Write them with lgg-flair evaluate.") from error


def _score_of(row: Mapping[Any, str]) -> VolumeScore:
    ratios = {key: float(row[key]) if row[key] else None for key in RATIO_COLUMNS}
    counts = {key: int(row[key]) for key in COUNT_COLUMNS}
    others = {key: float(row[key]) if row.get(key) else None for key in OPTIONAL_COLUMNS}
    seen = _SEEN[row.get(SEEN_COLUMN, "")]
    return VolumeScore(patient=row["patient"], seen=seen, **ratios, **counts, **others)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Subtotal:
    """The mean DSC of one group of patients: trained on, not trained on, or not known.

    Args:
        group: The group's name, a value of ``GROUPS``.
        patients: Number of patients in the group.
        scored: Number of patients in the group that have a DSC.
        dsc_mean: Mean DSC of the group; None if no patient has one.
    """

    group: str
    patients: int
    scored: int
    dsc_mean: float | None


def subtotals(scores: Sequence[VolumeScore]) -> list[Subtotal]:
    """A subtotal for each group of ``GROUPS`` that has patients."""
    found = []
    for seen, name in GROUPS.items():
        group = [score.dsc for score in scores if score.seen is seen]
        dsc = [value for value in group if value is not None]
        if group:
            found.append(Subtotal(name, len(group), len(dsc), sum(dsc) / len(dsc) if dsc else None))
    return found


def scores_table(scores: Sequence[VolumeScore], summary: Mapping[str, Any]) -> str:
    """The scores as a table in plain text: patients with the lowest DSC first, then mean, interval and median.

    Args:
        scores: One score for each volume.
        summary: The evaluation's summary, as ``read_summary`` returns it.
    """
    trained_on = any(score.seen for score in scores)
    width = max(len("patient"), *(len(score.patient) for score in scores))
    in_mm = any(score.surface_dice_2mm is not None for score in scores)
    distances = f"{'HD95':>6}" + f"  {'in mm':>6}  {'S.DSC':>6}" * in_mm
    lines = [
        f"{'patient':<{width}}  {'DSC':>6}  {distances}  {'sens.':>6}  {'prec.':>6}  {'TP':>7}  {'FP':>7}  {'FN':>7}"
        + "  trained on" * trained_on
    ]
    for s in sorted(scores, key=lambda score: -1.0 if score.dsc is None else score.dsc):
        mm = f"  {_cell(s.hd95_mm, 2)}  {_cell(s.surface_dice_2mm, 4)}" if in_mm else ""
        lines.append(
            f"{s.patient:<{width}}  {_cell(s.dsc, 4)}  {_cell(s.hd95_px, 2)}{mm}  {_cell(s.sensitivity, 4)}"
            f"  {_cell(s.precision, 4)}  {s.tp_voxels:>7}  {s.fp_voxels:>7}  {s.fn_voxels:>7}"
            + {True: "  yes", False: "  no", None: "  -"}[s.seen]
            * trained_on
        )
    if summary["scored"]:
        low, high = summary["dsc_mean_95"]
        lines.append(
            f"mean DSC {summary['dsc_mean']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"median {summary['dsc_median']:.4f}, {summary['scored']} of {summary['volumes']} volumes"
        )
    if trained_on:
        lines += [
            f"{one.group}: mean DSC {_cell(one.dsc_mean, 4).strip()}, {one.scored} of {one.patients} volumes"
            for one in subtotals(scores)
        ]
    if summary["undefined"]:
        lines.append(f"DSC not defined (no lesion, none predicted): {', '.join(summary['undefined'])}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return f"{'-':>6}" if value is None else f"{value:>6.{digits}f}"
