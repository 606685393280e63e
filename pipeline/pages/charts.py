"""Charts by matplotlib of DSC, training curves and shape features: a PNG for an evaluation, SVG for the pages."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import math
import re
import statistics
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which needs a window system and global state
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.features.association import Agreement
from pipeline.scoring.curves import Curve

WIDTH_IN = 5.4
"""Width of a chart in inches. Its text stays legible when a phone shrinks it to two thirds."""
MAX_ROWS = 30
"""Patients that get a row each in a chart. More patients are drawn side by side, without their ids."""
MAX_NAME = 34
"""Letters of a name in a chart at most."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f")
"""Colors of runs (Okabe and Ito 2008). Yellow is darker and black is gray, to show on light and dark pages."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of runs, so that runs differ not only by color."""
_INK = "#0a0b0c"
"""A color that is replaced by the page's text color in an SVG."""
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}
_SVG: dict[str, Any] = {
    **_STYLE,
    "svg.fonttype": "none",  # text stays text, so that it can be searched and read aloud
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "savefig.transparent": True,
}


@contextlib.contextmanager
def _styled(settings: dict[Any, Any]) -> Iterator[None]:
    """Matplotlib's settings for one chart. Missing fonts and glyphs cause no warnings."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def dsc_png(dsc: Mapping[str, float], interval: tuple[float, float], without: int = 0) -> bytes:
    """A PNG file of the DSC of each patient, with mean (red), its 95 % interval (light red) and median (green).

    Args:
        dsc: Patient id -> DSC, 0 to 1; at least one patient.
        interval: Lower and upper end of the mean's 95 % interval.
        without: Number of patients without a DSC, named below the chart.
    """
    values = sorted(dsc.items(), key=lambda item: item[1])
    mean, median = statistics.mean(dsc.values()), statistics.median(dsc.values())
    with _styled(_STYLE):
        figure = Figure(figsize=(8, max(2.5, 1.2 + 0.24 * len(values))))
        axes = figure.add_subplot()
        axes.barh([patient for patient, _ in values], [value for _, value in values], color="#56b4e9", height=0.7)
        for place, (_, value) in enumerate(values):
            axes.text(0.01, place, f"{value:.4f}", va="center", fontsize=7)
        axes.axvspan(*interval, color="red", alpha=0.15, lw=0, label=f"95 % {interval[0]:.3f} to {interval[1]:.3f}")
        axes.axvline(mean, color="red", lw=1.5, label=f"mean {mean:.4f}")
        axes.axvline(median, color="green", lw=1.5, ls="--", label=f"median {median:.4f}")
        unscored = f" ({without} patients without one)" if without else ""
        axes.set(xlim=(0, 1), ylim=(-0.6, len(values) - 0.4), xlabel=f"DSC{unscored}")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def dsc_svg(
    runs: Mapping[str, Mapping[str, float | None]],
    patients: Sequence[str],
    trained_on: Mapping[str, Collection[str]] | None = None,
) -> str:
    """An SVG chart of the DSC of each patient, with a mark for each run.

    A cross shows a DSC that is not defined. A run without the patient has no mark. Up to ``MAX_ROWS`` patients get one
    row each. More patients are drawn side by side, which keeps the height of the chart.

    Args:
        runs: Name of the run -> patient id -> DSC; None if the DSC is not defined.
        patients: Ids of all patients, in the order of the chart.
        trained_on: Name of the run -> ids of patients that its weights were trained on; their marks are hollow.
    """
    with _styled(_SVG):
        in_rows = len(patients) <= MAX_ROWS
        figure = _figure(runs, 0.7 + 0.24 * len(patients) if in_rows else 3.2)
        axes = figure.add_subplot()
        lowest, legend = _floor(runs), {}
        for number, (name, dsc) in enumerate(runs.items()):
            shift = (number + 1) / (len(runs) + 1) - 0.5 if in_rows else 0.0
            places = {patient: place + shift for place, patient in enumerate(patients) if patient in dsc}
            marks = {
                patient: (value, places[patient]) if in_rows else (places[patient], value)
                for patient, value in dsc.items()
                if value is not None and patient in places
            }
            legend[name] = _mark(axes, marks, number, (trained_on or {}).get(name, ()))
            crosses = [place for patient, place in places.items() if dsc[patient] is None]
            at_floor = [lowest] * len(crosses)
            axes.plot(*((at_floor, crosses) if in_rows else (crosses, at_floor)), "x", color=_INK, ms=4, clip_on=False)
        if in_rows:
            axes.set(yticks=range(len(patients)), yticklabels=_labels(patients, 26))
            axes.set(xlabel="DSC", xlim=(lowest, 1.01), ylim=(len(patients) - 0.4, -0.6))
        else:
            axes.set(xlabel=f"{len(patients)} patients, from the worst to the best", ylabel="DSC", ylim=(lowest, 1.01))
        axes.grid(axis="x" if in_rows else "y", color=_INK, alpha=0.15, lw=0.6)
        return _svg(figure, f"DSC of {len(patients)} patients, one mark for each run", legend)


def sizes_svg(
    runs: Mapping[str, Mapping[str, float | None]],
    lesion_voxels: Mapping[str, int],
    trained_on: Mapping[str, Collection[str]] | None = None,
) -> str:
    """An SVG chart of lesion size against DSC, with a mark for each patient and run.

    Args:
        runs: Name of the run -> patient id -> DSC; None if the DSC is not defined.
        lesion_voxels: Patient id -> number of voxels in the truth.
        trained_on: Name of the run -> ids of patients that its weights were trained on; their marks are hollow.
    """
    with _styled(_SVG):
        figure = _figure(runs, 3.2)
        axes, legend = figure.add_subplot(), {}
        for number, (name, dsc) in enumerate(runs.items()):
            known = {p: (lesion_voxels[p], value) for p, value in dsc.items() if lesion_voxels.get(p)}
            marks = {p: (size, value) for p, (size, value) in known.items() if value is not None}
            legend[name] = _mark(axes, marks, number, (trained_on or {}).get(name, ()))
        axes.set(xscale="log", xlabel="lesion size in voxels of the truth", ylabel="DSC", ylim=(_floor(runs), 1.01))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        return _svg(figure, "Lesion size against DSC", legend)


def curves_svg(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """An SVG chart of training and validation loss (above) and validation DSC (below), by iteration.

    Args:
        curves: Name of the training -> tag -> points, as ``read_curves`` returns them.
    """
    with _styled(_SVG):
        figure = _figure(curves, 5.2)
        loss, dsc = figure.subplots(2, 1)
        legend: dict[str, Line2D] = {}
        for number, (name, tags) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": _color(number), "marker": _own_marker(number), "ms": 4}
            for axes, tag, style in (
                (dsc, "val_dsc", {"lw": 1.4}),
                (loss, "val_loss", {"lw": 1.4, "ls": "--"}),
                (loss, "train_loss", {"lw": 0.8, "alpha": 0.6, "markevery": 0.2}),
            ):
                if tags.get(tag):
                    (line,) = axes.plot(*zip(*tags[tag], strict=True), **look, **style)
                    legend.setdefault(name, line)  # one entry in the legend, whichever curves a training has
        loss.set(title="loss: training thin, validation dashed")
        dsc.set(xlabel="iteration", title="validation DSC")
        return _svg(figure, "Training curves", legend)


def groups_svg(values: Mapping[str, Sequence[float]], feature: str, column: str, kind: str) -> str:
    """An SVG chart of a feature in each group: a box from quartile to quartile, and a mark for every patient.

    Args:
        values: Group -> the patients' values, at least one.
        feature: Name of the feature.
        column: Name of the column that holds the groups.
        kind: Which masks were measured, ``predicted`` or ``true``.
    """
    with _styled(_SVG):
        figure = Figure(figsize=(WIDTH_IN, 3.0))
        axes = figure.add_subplot()
        line = {"color": _INK, "lw": 1.0}
        parts = [*values.values()]
        axes.boxplot(
            parts,
            widths=0.5,
            showfliers=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={**line, "lw": 2.2},
        )
        for place, part in enumerate(parts, start=1):
            # Marks of equal height lie side by side; their places are the same in every run.
            shifts = [0.16 * ((number % 5) - 2) / 2 for number in range(len(part))]
            axes.plot([place + shift for shift in shifts], sorted(part), "o", color=_color(place - 1), ms=4, alpha=0.7)
        names = [textwrap.fill(label, min(14, 50 // len(parts))) for label in _labels(values, 14)]
        axes.set_xticks(
            range(1, len(parts) + 1), [f"{name}\n({len(part)})" for name, part in zip(names, parts, strict=True)]
        )
        axes.set(xlabel=f"{column} (patients)", ylabel=feature.replace("_", " "))
        return _svg(figure, f"{feature} by {column}, {kind} masks")


def agreement_svg(predicted: Mapping[str, float], true: Mapping[str, float], found: Agreement) -> str:
    """An SVG chart by Bland and Altman: mean and difference of a feature of predicted and true masks.

    Args:
        predicted: Patient -> value of the predicted mask.
        true: Patient -> value of the true mask.
        found: The agreement of both.
    """
    with _styled(_SVG):
        figure = Figure(figsize=(WIDTH_IN, 3.0))
        axes = figure.add_subplot()
        pairs = [(predicted[patient], true[patient]) for patient in predicted if patient in true]
        axes.plot(
            [(one + two) / 2 for one, two in pairs],
            [one - two for one, two in pairs],
            "o",
            color=_color(0),
            ms=4,
            alpha=0.7,
        )
        axes.axhline(found.bias, color=_INK, lw=1.2)
        for limit in (found.lower, found.upper):
            axes.axhline(limit, color=_INK, lw=1.0, ls="--")
        axes.set(xlabel=f"mean of predicted and true {found.feature.replace('_', ' ')}", ylabel="predicted - true")
        return _svg(figure, f"{found.feature}: predicted and true masks, by Bland and Altman")


def _figure(names: Collection[str], height: float) -> Figure:
    """An empty chart: a plot of this height in inches, and space above it for a legend of these names."""
    columns = _legend_columns(_labels(names, MAX_NAME))
    return Figure(figsize=(WIDTH_IN, height + 0.24 * math.ceil(len(names) / columns)))


def _legend_columns(labels: Iterable[str]) -> int:
    """The number of labels that fit side by side in a legend."""
    return max(1, min(3, 54 // (6 + max(map(len, labels)))))


def _mark(axes: Axes, marks: Mapping[str, tuple[float, float]], number: int, trained_on: Collection[str]) -> Line2D:
    """Draw a run's marks, patient -> (x, y). Marks of patients that were trained on are hollow.

    Returns:
        The filled marks, for the legend.
    """
    look: dict[str, Any] = {"color": _color(number), "marker": _own_marker(number), "ls": "", "ms": 6, "alpha": 0.85}
    filled = [place for patient, place in marks.items() if patient not in trained_on]
    hollow = [place for patient, place in marks.items() if patient in trained_on]
    (marked,) = axes.plot(*(zip(*filled, strict=True) if filled else ([], [])), **look)
    axes.plot(*(zip(*hollow, strict=True) if hollow else ([], [])), **look, markerfacecolor="none")
    return marked


def _floor(runs: Mapping[str, Mapping[str, float | None]]) -> float:
    """The start of the DSC axis, a little below the lowest DSC."""
    lowest = min((value for dsc in runs.values() for value in dsc.values() if value is not None), default=0.0)
    return int(lowest * 10) / 10 - 0.03


def _short(name: str, letters: int) -> str:
    """A name of at most so many letters. A longer name loses its middle."""
    half = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:half]}\u2026{name[-half:]}"


def _labels(names: Iterable[str], letters: int) -> list[str]:
    """Names of at most so many letters each, and of up to twice as many where two names would look alike."""
    found, most = [*names], 2 * letters
    while letters < most and len({_short(name, letters) for name in found}) < len({*found}):
        letters += 1
    return [_short(name, letters) for name in found]


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _own_marker(number: int) -> str:
    """A run's marker. When colors repeat, they repeat with other markers."""
    return MARKERS[(number + number // len(COLORS)) % len(MARKERS)]


def _svg(figure: Figure, label: str, legend: Mapping[str, Line2D] | None = None) -> str:
    """The chart as an SVG element for a page: text in the page's color, and ids that no other chart has."""
    if legend:
        names, look = _labels(legend, MAX_NAME), {"frameon": False, "handletextpad": 0.4}
        figure.legend([*legend.values()], names, loc="outside upper left", ncols=_legend_columns(names), **look)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):  # gives each chart its own ids
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, _, text = buffer.getvalue().partition("<svg")
    text = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"', "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2).replace(_INK, "currentColor")
    # The chart is never wider than drawn, and shrinks in narrower windows.
    widest = f"max-width:{figure.get_figwidth() * 96:.0f}px"
    return f'<svg role="img" aria-label="{html.escape(label)}" style="{widest}"{text}'
