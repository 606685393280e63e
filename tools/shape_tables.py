"""Tables of the page on shape and genomic subtype, from ``docs/results/shape.json``.

``python -m tools.shape_tables FOLDER`` takes them from the output folder of ``lgg-flair shape --clinical data.csv``. It
keeps p values, rates and strengths of each pair, and no group of a patient. ``python -m tools.results --write`` then
writes the tables into the page, between ``<!-- shape associations -->`` or ``<!-- shape agreement -->`` and
``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.scripts.files import write_durably

SHAPES = Path("docs/results/shape.json")
SUBTYPES = {
    "RNASeqCluster": "RNASeq",
    "MethylationCluster": "methylation",
    "miRNACluster": "microRNA",
    "CNCluster": "copy number",
    "RPPACluster": "RPPA",
    "OncosignCluster": "Oncosign",
    "COCCluster": "cluster of clusters",
}
"""Columns of the published ``data.csv`` -> their names on the page."""
KEPT = (
    *("feature", "column", "patients", "fisher_p", "fisher_q", "cramers_v"),
    *("kruskal_p", "kruskal_q", "epsilon_squared"),
)
KINDS = ("true", "predicted")
SIGNIFICANT = 0.05
CHARTS = {
    "bounding_ellipsoid_volume_ratio": Path("docs/images/shape_ratio.svg"),
    "voxels": Path("docs/images/shape_voxels.svg"),
}
"""Features -> their charts of predicted against true masks (Bland and Altman)."""


def read_shapes(root: Path) -> dict[str, Any]:
    """What was kept of a run of ``lgg-flair shape``.

    Args:
        root: The repository's folder.

    Raises:
        PipelineError: The file is unreadable.
    """
    try:
        return dict(json.loads((root / SHAPES).read_bytes()))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{root / SHAPES}: not readable ({error}). Restore it.") from error


def shape_table(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a table, its head first.

    Args:
        name: ``associations`` or ``agreement``.
        found: What ``read_shapes`` returns.

    Raises:
        PipelineError: There is no table of this name.
    """
    if name == "associations":
        return _associations(found["associations"])
    if name == "agreement":
        return _agreement(found["agreement"])
    raise PipelineError(f"<!-- shape {name} -->: no such table (expected associations or agreement).")


def _associations(associations: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    found = {(kind, one["feature"], one["column"]): one for kind in KINDS for one in associations[kind]}
    tests = [f"{test}, {kind}" for test in ("Fisher", "Kruskal-Wallis") for kind in KINDS]
    rows = [["feature", "subtype", "patients", *tests]]
    for feature in dict.fromkeys(one["feature"] for one in associations["true"]):  # the smallest p value first
        for place, (column, subtype) in enumerate(SUBTYPES.items()):
            ones = [found.get((kind, feature, column)) for kind in KINDS]
            cells = [_p(one, test) for test in ("fisher", "kruskal") for one in ones]
            name = "" if place else feature.replace("_", " ")
            patients = dict.fromkeys(str(one["patients"]) if one else "0" for one in ones)
            rows.append([name, subtype, ", ".join(patients), *cells])
    return rows


def _p(one: Mapping[str, Any] | None, test: str) -> str:
    """A p value with its false discovery rate, in bold where the rate is low; a dash for a pair that was not tested."""
    if one is None:
        return "-"
    rate = one[f"{test}_q"]
    mark = "**" if rate < SIGNIFICANT else ""
    return f"{mark}{_two_digits(one[f'{test}_p'])}{mark} ({_two_digits(rate)})"


def _two_digits(value: float) -> str:
    return f"{value:.6f}" if 1e-6 <= value < 1e-4 else f"{value:#.2g}"


def write_charts(root: Path) -> None:
    """Write the charts of the page.

    Args:
        root: The repository's folder.
    """
    from pipeline.features.association import agreement
    from pipeline.pages.charts import agreement_svg

    values = read_shapes(root)["values"]
    for name, path in CHARTS.items():
        known = ({one: row[name] for one, row in values[kind].items() if row[name] is not None} for kind in KINDS)
        true, predicted = known
        found = agreement(name, predicted, true)
        if found is None:
            raise PipelineError(f"{root / SHAPES}: fewer than three patients have {name}. Restore it.")
        write_chart(root / path, agreement_svg(predicted, true, found))


def write_chart(path: Path, svg: str) -> None:
    """Write an SVG chart of the docs, in a gray that is readable on light and dark pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, svg.replace("currentColor", "#7d8590").encode())


def _agreement(agreement: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["feature", "patients", "rank correlation", "bias", "limits of agreement"]]
    for one in agreement:
        name = one["feature"].removesuffix("_px")
        form = ",.0f" if name == "voxels" else ".1f" if name == "slices" or "_px" in one["feature"] else ".3f"
        bias, low, high = (format(one[key], form) for key in ("bias", "lower", "upper"))
        rows.append(
            [
                name.replace("_", " ") + ", pixels" * ("_px" in one["feature"]),
                str(one["patients"]),
                "-" if one["spearman"] is None else f"{one['spearman']:.3f}",
                bias,
                f"{low} to {high}",
            ]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the tables of a run of ``lgg-flair shape``.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        PipelineError: The folder holds no such run.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.shape_tables", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="the output folder of lgg-flair shape")
    parser.add_argument(
        "--root", type=Path, default=Path(), help="the repository's folder (default: the working directory)"
    )
    args = parser.parse_args(argv)
    path = args.folder / "shape.json"
    try:
        run = json.loads(path.read_bytes())
        pairs = {kind: [{key: one[key] for key in KEPT} for one in run["associations"][kind]] for kind in KINDS}
        charted = {
            kind: {row["patient"]: {name: row[name] for name in CHARTS} for row in run["shapes"] if row["mask"] == kind}
            for kind in KINDS
        }
        kept = {**{key: run[key] for key in ("patients", "matched", "agreement")}, "associations": pairs}
        kept["values"] = charted
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(
            f"{path}: no associations of predicted and true masks ({error!r}). Measure an evaluation with --clinical."
        ) from error
    write_durably(args.root / SHAPES, (json.dumps(kept, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
