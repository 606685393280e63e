"""Charts of DSC and of training, by matplotlib: a PNG for the evaluation's folder, SVG for the report."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    "axes.grid": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
    "hatch.linewidth": 0.6,
}


@contextlib.contextmanager
def _styled(**more: Any) -> Iterator[None]:
    """Matplotlib's settings for one chart; fonts that are not installed and glyphs that none has go without a word."""
    import warnings

    import matplotlib as mpl

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    settings: dict[Any, Any] = {**_STYLE, **more}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def dsc_png(dsc: Mapping[str, float], interval: tuple[float, float], without: int = 0) -> bytes:
    """DSC by patient, sorted; mean red, its 95 % interval light red, median green."""
    import statistics

    values = sorted(dsc.items(), key=lambda item: item[1])
    mean, median = statistics.mean(dsc.values()), statistics.median(dsc.values())
    with _styled():
        figure, axes = _figure(8, max(2.5, 1.2 + 0.24 * len(values)))
        axes.barh([patient for patient, _ in values], [value for _, value in values], color="#56b4e9", height=0.7)
        for place, (_, value) in enumerate(values):
            axes.text(0.01, place, f"{value:.4f}", va="center", fontsize=7)
        axes.axvspan(*interval, color="red", alpha=0.15, lw=0, label=f"95 % {interval[0]:.3f} to {interval[1]:.3f}")
        axes.axvline(mean, color="red", lw=1.5, label=f"mean {mean:.4f}")
        axes.axvline(median, color="green", lw=1.5, ls="--", label=f"median {median:.4f}")
        axes.set(
            xlim=(0, 1),
            ylim=(-0.6, len(values) - 0.4),
            xlabel=f"DSC{f' ({without} patients without one)' if without else ''}",
        )
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def dsc_svg(runs: Mapping[str, Mapping[str, float | None]], patients: Sequence[str]) -> str:
    """DSC by patient, all runs side by side; a cross: DSC not defined; nothing: the run has no such patient."""
    with _styled(**_SVG):
        thick = 0.8 / len(runs)
        figure, axes = _figure(9, 0.9 + len(patients) * max(0.3, 0.13 * len(runs) + 0.08))
        for number, (name, dsc) in enumerate(runs.items()):
            rows = [place + (number + 0.5) * thick - 0.4 for place in range(len(patients))]
            axes.barh(
                rows,
                [dsc.get(patient) or 0 for patient in patients],
                height=thick * 0.92,
                label=name,
                **_look(number, "hatch"),
            )
            odd = [(0.01, row) for row, patient in zip(rows, patients, strict=True) if dsc.get(patient, 0) is None]
            axes.plot(*zip(*odd, strict=True), "x", color=_INK, ms=4) if odd else None
        axes.set(yticks=range(len(patients)), yticklabels=patients, xlabel="DSC", xlim=(0, 1))
        axes.invert_yaxis()
        axes.margins(y=0.01)
        return _svg(figure, len(runs), f"DSC of {len(patients)} patients, a bar a run")


def sizes_svg(runs: Mapping[str, Mapping[str, float | None]], lesion_voxels: Mapping[str, int]) -> str:
    """Lesion size against DSC, a mark for each patient and run."""
    from matplotlib.ticker import LogLocator, NullLocator

    with _styled(**_SVG):
        figure, axes = _figure(9, 3.6)
        for number, (name, dsc) in enumerate(runs.items()):
            points = [
                (lesion_voxels[p], value) for p, value in dsc.items() if value is not None and lesion_voxels.get(p)
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, ls="", ms=6, alpha=0.85, label=name, **_look(number, "marker"))
        lowest = min((value for dsc in runs.values() for value in dsc.values() if value is not None), default=0.0)
        axes.set(
            xscale="log", xlabel="lesion, voxels of the truth", ylabel="DSC", ylim=(int(lowest * 10) / 10 - 0.03, 1)
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        return _svg(figure, len(runs), "Lesion size against DSC")


def curves_svg(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """Training loss (thin) and validation loss on the left, validation DSC on the right, by iteration."""
    from matplotlib.figure import Figure

    with _styled(**_SVG):
        figure = Figure(figsize=(9, 3.4))
        loss, dsc = figure.subplots(1, 2)
        for number, (name, tags) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": name}
            look |= {"marker": MARKERS[_place(number)], "ms": 4}
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
        for axes in (loss, dsc):
            axes.title.set_fontsize(9)
        return _svg(figure, len(curves), "Training curves")


_SVG = {
    "svg.fonttype": "none",  # text stays text: the browser's fonts, and it can be searched and read aloud
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "savefig.transparent": True,
}


def _place(number: int) -> int:
    """Of a run's hatch and marker: beyond as many runs as there are colours, another one than the first time round."""
    return (number + number // len(COLOURS)) % len(COLOURS)


def _look(number: int, more: str) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    if more == "hatch":
        return {"facecolor": colour, "edgecolor": "#ffffff", "lw": 0, "hatch": HATCHES[_place(number)]}
    return {"color": colour, "marker": MARKERS[_place(number)]}


def _svg(figure: Figure, entries: int, label: str) -> str:
    """The chart to be set into a page: text in the page's colour, no header, no ids shared with another chart."""
    import hashlib
    import html

    import matplotlib as mpl

    figure.legend(loc="outside upper left", ncols=min(entries, 3), frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": hashlib.sha256(label.encode()).hexdigest()}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r'<style type="text/css">.*?</style>', r"<!--.*?-->"):
        text = re.sub(part, "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    text = re.sub(
        r'\bid="((?:figure|axes|patch|text|line2d|legend|matplotlib|xtick|ytick|PathCollection)[^"]*)"', "", text
    )
    # The SVG's own size in points becomes its widest; narrower windows shrink it.
    width = re.search(r'<svg[^>]*\bwidth="([\d.]+)pt"', text)
    text = re.sub(
        r'(<svg[^>]*?) width="[\d.]+pt"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1),
        count=1,
    )
    wide = f"max-width:{float(width[1]) * 4 / 3:.0f}px" if width else ""
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}" style="{wide}"', 1)
