"""Scores of an evaluation by kinds of patient: lesion size, slices, missing sequences, institution.

Reads files alone: nothing is trained, predicted or written.

``python benchmarks/by_group.py docs/results/crossval/basic_unet_native docs/results/gpu/crossval_basic_unet_native``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas
from measure import print_table

from pipeline.datalist import read_manifest

SMALL, LARGE = 8_000, 25_000
"""Lesion voxels of the native volume."""
FEW, MANY = 24, 40
"""Slices of a volume."""


def patients(manifest: Path) -> pandas.DataFrame:
    """A row a patient, a column a grouping; the values are the groups' names."""
    records = pandas.DataFrame(read_manifest(manifest).patients).T
    slices = records["shape"].str[2].astype(int)
    voxels = records["lesion_voxels"].astype(int)
    return pandas.DataFrame(
        {
            "lesion": pandas.cut(
                voxels,
                [0, SMALL, LARGE, float("inf")],
                labels=[f"under {SMALL:,} voxels", f"{SMALL:,} to {LARGE:,}", f"over {LARGE:,}"],
            ),
            "slices": pandas.cut(
                slices, [0, FEW, MANY, float("inf")], labels=[f"up to {FEW}", f"{FEW + 1} to {MANY}", f"over {MANY}"]
            ),
            "sequences": records["missing_sequences"].map(lambda missing: "some missing" if missing else "all three"),
            "institution": records["institution"],
        }
    )


def main() -> None:
    """Print a row a group."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("scores", nargs="+", type=Path, help="folders with the scores.csv of pipeline.evaluate")
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"))
    args = parser.parse_args()

    groups = patients(args.manifest)
    scores = {str(folder): pandas.read_csv(folder / "scores.csv", index_col="patient")["dsc"] for folder in args.scores}
    table = pandas.DataFrame(scores).join(groups, how="inner")
    rows = []
    for kind in groups:
        for name, members in table.groupby(kind, observed=True):
            figures = [f"{members[of].mean():.4f} ({members[of].median():.4f})" for of in scores]
            rows.append([f"{kind}: {name}", str(len(members)), *figures])
    print_table("Mean (median) DSC", ["patients with", "number", *scores], rows)


if __name__ == "__main__":
    main()
