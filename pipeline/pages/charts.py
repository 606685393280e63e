"""Charts of DSC and of training, by matplotlib: a PNG for the evaluation's folder, SVG for the report."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window system, no global state
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.scoring.curves import Curve

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f")
"""Of runs; Okabe and Ito 2008, their yellow darkened and black made grey for light and dark paper alike."""
HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\", "ooo", "+++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Runs differ by more than colour."""
_INK = "#0a0b0c"
"""Stands for the page's own text colour in an SVG."""
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
    "hatch.linewidth": 0.6,
}
_SVG: dict[str, Any] = {
    **_STYLE,
    "svg.fonttype": "none",  # text stays text: the browser's fonts, and it can be searched and read aloud
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "savefig.transparent": True,
}


@contextlib.contextmanager
def _styled(settings: dict[Any, Any]) -> Iterator[None]:
    """Matplotlib's settings for one chart; fonts that are not installed and glyphs that none has go without a word."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def dsc_png(dsc: Mapping[str, float], interval: tuple[float, float], without: int = 0) -> bytes:
    """DSC by patient, sorted; mean red, its 95 % interval light red, median green."""
    patients = sorted(dsc, key=dsc.__getitem__)
    mean, median = statistics.mean(dsc.values()), statistics.median(dsc.values())
    with _styled(_STYLE):
        figure = Figure(figsize=(8, max(2.5, 1.2 + 0.24 * len(dsc))))
        axes = figure.add_subplot()
        axes.barh(patients, [dsc[patient] for patient in patients], color="#56b4e9", height=0.7)
        for place, patient in enumerate(patients):
            axes.text(0.01, place, f"{dsc[patient]:.4f}", va="center", fontsize=7)
        axes.axvspan(*interval, color="red", alpha=0.15, lw=0, label=f"95 % {interval[0]:.3f} to {interval[1]:.3f}")
        axes.axvline(mean, color="red", lw=1.5, label=f"mean {mean:.4f}")
        axes.axvline(median, color="green", lw=1.5, ls="--", label=f"median {median:.4f}")
        unscored = f" ({without} patients without one)" if without else ""
        axes.set(xlim=(0, 1), ylim=(-0.6, len(dsc) - 0.4), xlabel=f"DSC{unscored}")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def dsc_svg(runs: Mapping[str, Mapping[str, float | None]], patients: Sequence[str]) -> str:
    """DSC by patient, all runs side by side; a cross: DSC not defined; nothing: the run has no such patient."""
    with _styled(_SVG):
        thick = 0.8 / len(runs)
        figure = Figure(figsize=(9, 0.9 + len(patients) * max(0.3, 0.13 * len(runs) + 0.08)))
        axes = figure.add_subplot()
        for number, (name, dsc) in enumerate(runs.items()):
            rows = np.arange(len(patients)) + (number + 0.5) * thick - 0.4
            values = [dsc.get(patient) or 0 for patient in patients]
            look = _look(number, "hatch", HATCHES)
            axes.barh(rows, values, height=thick * 0.92, label=name, edgecolor="#ffffff", lw=0, **look)
            crosses = [row for row, patient in zip(rows, patients, strict=True) if dsc.get(patient, 0) is None]
            axes.plot([0.01] * len(crosses), crosses, "x", color=_INK, ms=4)
        axes.set(yticks=range(len(patients)), yticklabels=patients, xlabel="DSC", xlim=(0, 1))
        axes.invert_yaxis()
        axes.margins(y=0.01)
        return _svg(figure, f"DSC of {len(patients)} patients, a bar a run")


def sizes_svg(runs: Mapping[str, Mapping[str, float | None]], lesion_voxels: Mapping[str, int]) -> str:
    """Lesion size against DSC, a mark for each patient and run."""
    with _styled(_SVG):
        figure = Figure(figsize=(9, 3.6))
        axes = figure.add_subplot()
        for number, (name, dsc) in enumerate(runs.items()):
            scored = {p: value for p, value in dsc.items() if value is not None and lesion_voxels.get(p)}
            sizes = [lesion_voxels[p] for p in scored]
            look = _look(number, "marker", MARKERS)
            axes.plot(sizes, [*scored.values()], ls="", ms=6, alpha=0.85, label=name, **look)
        lowest = min((value for dsc in runs.values() for value in dsc.values() if value is not None), default=0.0)
        axes.set(xscale="log", xlabel="lesion, voxels of the truth")
        axes.set(ylabel="DSC", ylim=(int(lowest * 10) / 10 - 0.03, 1))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        return _svg(figure, "Lesion size against DSC")


def curves_svg(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """Training loss (thin) and validation loss on the left, validation DSC on the right, by iteration."""
    with _styled(_SVG):
        figure = Figure(figsize=(9, 3.4))
        loss, dsc = figure.subplots(1, 2)
        for number, (name, tags) in enumerate(curves.items()):
            look = {**_look(number, "marker", MARKERS), "ms": 4, "label": name}
            for axes, tag, style in (
                (dsc, "val_dsc", {"lw": 1.4}),
                (loss, "val_loss", {"lw": 1.4, "ls": "--"}),
                (loss, "train_loss", {"lw": 0.8, "alpha": 0.6, "markevery": 0.2}),
            ):
                if tags.get(tag):
                    axes.plot(*zip(*tags[tag], strict=True), **look, **style)
                    look.pop("label", None)  # once in the legend, whatever a training has kept
        loss.set(xlabel="iteration", title="loss: training thin, validation dashed")
        dsc.set(xlabel="iteration", title="validation DSC")
        return _svg(figure, "Training curves")


def _look(number: int, kind: str, choices: Sequence[str]) -> dict[str, Any]:
    """A run's colour, and its hatch or marker: where colours come again, they come with another one."""
    again, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], kind: choices[(number + again) % len(choices)]}


def _svg(figure: Figure, label: str) -> str:
    """The chart to be set into a page: text in the page's colour, no header, no ids shared with another chart."""
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):  # ids of its own
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, _, text = buffer.getvalue().partition("<svg")
    text = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"', "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2).replace(_INK, "currentColor")
    # The SVG's own size becomes its widest; narrower windows shrink it.
    widest = f"max-width:{figure.get_figwidth() * 96:.0f}px"
    return f'<svg role="img" aria-label="{html.escape(label)}" style="{widest}"{text}'
