"""Scores of evaluations for groups of patients: lesion size, number of slices, missing sequences, institution.

This only reads files. It trains, predicts and writes nothing.

``python benchmarks/by_group.py runs/crossval_native runs/other_native``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas
from measure import print_table

from pipeline.cohort.manifest import read_manifest
from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from pipeline.scoring.results import read_scores

SMALL, LARGE = 8_000, 25_000
"""Limits of the groups by lesion size, in voxels of the native volume."""
FEW, MANY = 24, 40
"""Limits of the groups by number of slices in a volume."""


def patients(manifest: Path) -> pandas.DataFrame:
    """A table with one row for each patient and one column for each grouping; the values are names of groups."""
    records = pandas.DataFrame(read_manifest(manifest).patients).T
    slices = records["shape"].str[2].astype(int)
    voxels = records["lesion_voxels"].astype(int)
    return pandas.DataFrame(
        {
            "lesion": pandas.cut(
                voxels,
                [0, SMALL, LARGE, float("inf")],
                right=False,
                labels=[f"under {SMALL:,} voxels", f"{SMALL:,} to {LARGE:,}", f"{LARGE:,} and more"],
            ),
            "slices": pandas.cut(
                slices, [0, FEW, MANY, float("inf")], labels=[f"up to {FEW}", f"{FEW + 1} to {MANY}", f"over {MANY}"]
            ),
            "sequences": records["missing_sequences"].map(lambda missing: "some missing" if missing else "all three"),
            "institution": records["institution"],
        }
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row for each group.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        The exit status.

    Raises:
        PipelineError: There is no manifest, a folder has no scores, or the manifest lacks a patient.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("scores", nargs="+", type=Path, help="output folders of lgg-flair evaluate, with scores.csv")
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"))
    args = parser.parse_args(argv)

    groups = patients(args.manifest)
    read = {str(folder): {score.patient: score.dsc for score in read_scores(folder)} for folder in args.scores}
    table = pandas.DataFrame(read, dtype=float).join(groups)
    unknown = table.index.difference(groups.index)
    if len(unknown):
        raise PipelineError(f"{args.manifest}: has no {', '.join(unknown)}. Pass the manifest that was scored.")
    scores = list(read)
    rows = []
    for kind in groups:
        for name, members in table.groupby(kind, observed=True):
            figures = [f"{members[of].mean():.4f} ({members[of].median():.4f})" for of in scores]
            rows.append([f"{kind}: {name}", str(len(members)), *figures])
    print_table("Mean (median) DSC", ["patients with", "number", *scores], rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
