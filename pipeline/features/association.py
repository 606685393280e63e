"""Test whether features are associated with the columns of a clinical table, as the LGG radiogenomics papers do.

The statistics are those of SciPy. Each feature is tested against each column. A feature is split at its median, and
Fisher's exact test compares the halves, as in Buda et al. 2019 and Mazurowski et al. 2017. The Kruskal-Wallis test uses
all values of the feature. False discovery rates are by Benjamini and Hochberg 1995, over all pairs that were tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.names import person
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown

Values = Mapping[str, float]
"""Patient -> value of a feature."""
MAX_GROUPS = 10
"""A column with more different values is no column of groups."""
RESAMPLES = 100_000
"""Random tables for the p value of Fisher's exact test, where a column has more than two groups."""


@dataclass(frozen=True)
class ClinicalTable:
    """A table of clinical or genomic groups.

    Args:
        columns: Column -> patient of the features -> group. Patients without a value are left out.
        matched: Number of patients of the features that are in the table.
        skipped: Column -> why it is not tested.
    """

    columns: dict[str, dict[str, str]]
    matched: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class Association:
    """A feature and a column, tested on the patients that have both.

    Args:
        feature: Name of the feature.
        column: Name of the column.
        groups: Group -> number of patients, in the order of their names.
        patients: Number of patients.
        fisher_p: p value of Fisher's exact test between the halves of the feature and the groups, two-sided.
        fisher_q: False discovery rate of all pairs with a p value of at most ``fisher_p``.
        cramers_v: Strength of the association of halves and groups, 0 to 1 (Cramer 1946).
        kruskal_p: p value of the Kruskal-Wallis test of the feature between the groups.
        kruskal_q: False discovery rate of all pairs with a p value of at most ``kruskal_p``.
        epsilon_squared: Share of the variance of ranks between the groups, 0 to 1 (Tomczak and Tomczak 2014).
        medians: Group -> median of the feature.
        auc: Group -> probability that a patient of the group has a larger feature than another one; a half counts for
            equal values.
    """

    feature: str
    column: str
    groups: dict[str, int]
    patients: int
    fisher_p: float
    fisher_q: float
    cramers_v: float
    kruskal_p: float
    kruskal_q: float
    epsilon_squared: float
    medians: dict[str, float]
    auc: dict[str, float]


def read_clinical(path: str | Path, patients: Sequence[str], columns: Sequence[str] = ()) -> ClinicalTable:
    """The columns of a CSV file that divide patients into groups.

    Args:
        path: A CSV file with a header. Its first column holds the patients: whole ids, or, as in the published
            ``data.csv``, ids without the date.
        patients: Ids of the patients that have features.
        columns: Names of the columns to test; empty for every column of 2 to ``MAX_GROUPS`` groups.

    Raises:
        PipelineError: The file cannot be read, names a patient twice, has none of the patients, or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: no readable CSV file ({shown(error)}). Check the path.") from error
    if len(table.columns) < 2:
        raise PipelineError(f"{path}: {len(table.columns)} column (expected patients and at least one other column).")
    table = table.dropna(subset=table.columns[:1]).set_index(table.columns[0])
    table.index = table.index.str.strip()
    if twice := sorted(set(table.index[table.index.duplicated()])):
        raise PipelineError(f"{path}: {shown(twice[0])} has several rows (expected one). Remove the others.")
    if missing := [column for column in columns if column not in table.columns]:
        names = ", ".join(map(shown, table.columns))
        raise PipelineError(f"{path}: no column {shown(missing[0])} (expected some of {names}).")
    rows = {one: one if one in table.index else person(one) for one in patients}
    found = {one: row for one, row in rows.items() if row in table.index}
    if not found:
        raise PipelineError(
            f"{path}: none of the {len(patients)} patients is in its first column, such as {shown(table.index[0])} "
            f"(expected ids such as {shown(person(patients[0]))})."
        )
    chosen: dict[str, dict[str, str]] = {}
    skipped: dict[str, str] = {}
    for column in columns or table.columns:
        values = table[column].dropna().str.strip()
        groups = {one: values[row] for one, row in found.items() if row in values.index and values[row]}
        count = len(set(groups.values()))
        if 2 <= count <= MAX_GROUPS:
            chosen[column] = groups
        else:
            skipped[column] = f"{count} different values (expected 2 to {MAX_GROUPS})"
    return ClinicalTable(chosen, len(found), skipped)


def associations(features: Mapping[str, Values], clinical: ClinicalTable, seed: int = 0) -> list[Association]:
    """Every feature tested against every column, the smallest p value of Fisher's test first.

    Args:
        features: Feature -> patient -> value. Patients without a value are left out.
        clinical: The groups of the patients.
        seed: Seed of the random tables of Fisher's test.

    Raises:
        PipelineError: No feature and column have patients of two groups in common.
    """
    from scipy.stats import false_discovery_control

    pairs = [
        found
        for feature, values in features.items()
        for column, groups in clinical.columns.items()
        if (found := _tested(feature, values, column, groups, seed))
    ]
    if not pairs:
        raise PipelineError("no association can be tested (expected a column with patients of two groups).")
    for kind in ("fisher", "kruskal"):
        rates = false_discovery_control([pair[f"{kind}_p"] for pair in pairs])
        for pair, rate in zip(pairs, rates, strict=True):
            pair[f"{kind}_q"] = float(rate)
    return sorted((Association(**pair) for pair in pairs), key=lambda one: (one.fisher_p, one.kruskal_p))


def _tested(feature: str, values: Values, column: str, groups: Mapping[str, str], seed: int) -> dict[str, Any] | None:
    """The attributes of an ``Association`` without false discovery rates; None if there is nothing to test."""
    from scipy.stats import MonteCarloMethod, fisher_exact, kruskal, mannwhitneyu
    from scipy.stats.contingency import association

    table = pd.DataFrame({"value": values, "group": groups}).dropna()
    halves = table["value"] > table["value"].median()
    counts = pd.crosstab(halves, table["group"])
    if min(counts.shape) < 2:
        return None
    parts = {str(name): part["value"].to_numpy() for name, part in table.groupby("group")}
    if counts.shape == (2, 2):
        fisher = fisher_exact(counts)
    else:
        fisher = fisher_exact(counts, method=MonteCarloMethod(RESAMPLES, rng=np.random.default_rng(seed)))
    ranks = kruskal(*parts.values())
    auc = {}
    for name, part in parts.items():
        others = table["value"][table["group"] != name]
        auc[name] = float(mannwhitneyu(part, others).statistic / (len(part) * len(others)))
    return {
        "feature": feature,
        "column": column,
        "groups": {name: len(part) for name, part in parts.items()},
        "patients": len(table),
        "fisher_p": float(fisher.pvalue),
        "cramers_v": float(association(counts, method="cramer")),
        "kruskal_p": float(ranks.pvalue),
        "epsilon_squared": float(ranks.statistic / (len(table) - 1)),
        "medians": {name: float(np.median(part)) for name, part in parts.items()},
        "auc": auc,
    }


@dataclass(frozen=True)
class Agreement:
    """How a feature of predicted masks agrees with that of true masks.

    Args:
        feature: Name of the feature.
        patients: Number of patients that have both values.
        spearman: Rank correlation, -1 to 1; None where all values are equal.
        bias: Mean of predicted minus true values.
        lower: Lower limit of agreement, the bias minus 1.96 standard deviations (Bland and Altman 1986).
        upper: Upper limit of agreement.
    """

    feature: str
    patients: int
    spearman: float | None
    bias: float
    lower: float
    upper: float


def agreement(feature: str, predicted: Values, true: Values) -> Agreement | None:
    """The agreement of a feature between predicted and true masks; None with fewer than three patients.

    Args:
        feature: Name of the feature.
        predicted: Patient -> value of the predicted mask.
        true: Patient -> value of the true mask.

    Examples:
        >>> found = agreement("voxels", {"a": 9, "b": 21, "c": 31}, {"a": 10, "b": 20, "c": 30})
        >>> print(f"{found.spearman:.2f} {found.bias:.2f}")
        1.00 0.33
    """
    from scipy.stats import spearmanr

    table = pd.DataFrame({"predicted": predicted, "true": true}).dropna()
    if len(table) < 3:
        return None
    apart = table["predicted"] - table["true"]
    bias, spread = float(apart.mean()), 1.96 * float(apart.std())
    differ = table.nunique().min() > 1
    rank = float(spearmanr(table["predicted"], table["true"]).statistic) if differ else None
    return Agreement(feature, len(table), rank, bias, bias - spread, bias + spread)
