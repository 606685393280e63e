"""Charts show every patient and run, use the page's text color, and are reproducible."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from PIL import Image

from pipeline.pages.charts import curves_svg, dsc_png, dsc_svg, groups_svg, sizes_svg

RUNS: dict[str, dict[str, float | None]] = {
    "first <run>": {"A": 0.5, "$B_$^": 0.9, "C": None},
    "second": {"A": 0.75, "C": 0.25},
}
CURVES = {
    "first <run>": {"train_loss": [(1.0, 0.9), (2.0, 0.5)], "val_dsc": [(2.0, 0.7)]},
    "second": {"val_loss": [(1.0, 0.8), (2.0, 0.4)], "other": [(1.0, 1.0)]},
}
CHARTS: dict[str, Callable[[], str]] = {
    "dsc": lambda: dsc_svg(RUNS, ["A", "$B_$^", "C"]),
    "sizes": lambda: sizes_svg(RUNS, {"A": 10, "$B_$^": 2000, "C": 0}),
    "curves": lambda: curves_svg(CURVES),
}


def test_dsc_chart_is_a_picture_that_grows_with_the_patients() -> None:
    few = Image.open(io.BytesIO(dsc_png({"A": 0.5, "$B_$^": 1.0}, (0.5, 1.0))))
    many = Image.open(io.BytesIO(dsc_png({f"P{n}": n / 60 for n in range(60)}, (0.4, 0.6))))
    assert few.format == "PNG"
    assert many.size[1] > 3 * few.size[1]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_can_be_set_into_a_page(name: str) -> None:
    """The chart is one reproducible element in the page's color, without header, style or metadata."""
    chart = CHARTS[name]()
    assert chart.startswith("<svg ")
    assert not re.search(r"<(?:\?xml|!DOCTYPE|metadata|style|script)\b", chart)
    assert "currentColor" in chart
    assert chart == CHARTS[name]()
    texts = [element.text for element in ElementTree.fromstring(chart).iter() if element.tag.endswith("}text")]
    assert {"first <run>", "second"} <= {*texts}


def test_charts_of_one_page_share_no_id() -> None:
    found = [name for chart in CHARTS.values() for name in set(re.findall(r'\bid="([^"]+)"', chart()))]
    assert len(found) == len(set(found))


def test_dsc_is_drawn_of_all_patients_with_a_cross_where_none_is_defined() -> None:
    chart = dsc_svg(RUNS, ["A", "$B_$^", "C"])
    assert all(f">{patient}</text>" in chart for patient in ("A", "$B_$^", "C"))
    assert 'aria-label="DSC of 3 patients, one mark for each run"' in chart
    without = {**RUNS, "first <run>": {"A": 0.5, "$B_$^": 0.9}}
    assert len(chart) > len(dsc_svg(without, ["A", "$B_$^", "C"]))


def test_charts_of_no_scored_patient_are_drawn() -> None:
    nothing: dict[str, dict[str, float | None]] = {"run": {"A": None}}
    assert ">A</text>" in dsc_svg(nothing, ["A"])
    assert ">run</text>" in sizes_svg(nothing, {"A": 0})


def test_more_runs_than_colors_are_told_apart() -> None:
    many: dict[str, dict[str, float | None]] = {f"run {number}": {"A": 0.5} for number in range(9)}
    chart = sizes_svg(many, {"A": 10})
    assert all(f">{name}</text>" in chart for name in many)


def height(chart: str) -> float:
    found = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart)
    assert found
    return float(found[1])


def test_the_chart_of_many_patients_is_no_higher_than_that_of_thirty() -> None:
    def chart(patients: int) -> str:
        ids = [f"P{number}" for number in range(patients)]
        return dsc_svg({"run": {patient: place / patients for place, patient in enumerate(ids)}}, ids)

    assert height(chart(20)) > height(chart(4))
    assert height(chart(110)) < height(chart(30))
    assert ">P3</text>" in chart(30)
    assert "110 patients, from the worst to the best" in chart(110)


def test_marks_of_patients_that_were_trained_on_are_hollow() -> None:
    for draw in (
        lambda trained_on: dsc_svg(RUNS, ["A", "C"], trained_on),
        lambda trained_on: sizes_svg(RUNS, {"A": 10, "C": 5}, trained_on),
    ):
        both = {name: {"A"} for name in RUNS}
        of_one = {"first <run>": {"A"}, "second": set()}
        assert [draw(seen).count("fill-opacity: 0;") for seen in (None, both, of_one)] == [0, 2, 1]


def test_long_names_are_cut_in_the_middle() -> None:
    name = "begin" + "x" * 100 + "end"
    chart = dsc_svg({name: {name: 0.5}}, [name])
    assert name not in chart
    assert len(re.findall(r">begin\w*\u2026\w*end</text>", chart)) == 2


@pytest.mark.parametrize("name", ["_hidden", "__", "_child0"])
def test_runs_of_any_name_are_in_the_legend(name: str) -> None:
    curve = {"train_loss": [(1.0, 0.9), (2.0, 0.5)]}
    charts = (dsc_svg({name: {"A": 0.5}}, ["A"]), sizes_svg({name: {"A": 0.5}}, {"A": 10}), curves_svg({name: curve}))
    assert all(f">{name}</text>" in chart for chart in charts)


def test_long_names_that_differ_in_the_middle_have_different_labels() -> None:
    patients, runs, groups = (
        [f"{'begin' * times}_{number}_{'end' * times}" for number in (1, 2)] for times in (4, 5, 2)
    )
    for chart in (
        dsc_svg({"run": dict.fromkeys(patients, 0.5)}, patients),
        sizes_svg({name: {"A": 0.5} for name in runs}, {"A": 10}),
        groups_svg({name: [7.0, 8.0] for name in groups}, "voxels", "subtype", "true"),
    ):
        texts = re.findall(r">([^<>]*)</text>", chart)
        assert all(any(f"{number}_" in text for text in texts) for number in (1, 2))
