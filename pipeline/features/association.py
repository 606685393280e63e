"""Test whether features are associated with the columns of a clinical table, as the LGG radiogenomics papers do.

Each feature is tested against each column. A feature is split at its median, and Fisher's exact test compares the
halves, as in Buda et al. 2019 and Mazurowski et al. 2017. Patients at the median belong to the lower half. The
Kruskal-Wallis test uses all values of the feature. False discovery rates are by Benjamini and Hochberg 1995, over all
pairs of one test and one kind of mask.

The median is that of the patients that have both values. The statistics are those of SciPy. For more than two groups,
SciPy draws random tables for Fisher's test. This module counts all of them where it can, with SciPy's probability of
each.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import person

logger = logging.getLogger(__name__)

Values = Mapping[str, float]
"""Patient -> value of a feature."""
MAX_GROUPS = 10
"""A column of text with more different values is no column of groups, and one of numbers is split at its median."""
MAX_CODES = 4
"""Numbers that are no codes are measures where they have more different values than this.

Codes are whole numbers within a range of ``MAX_GROUPS``.
"""
MAX_TABLES = 500_000
"""Tables that Fisher's test counts one by one. Beyond that number it draws ``RESAMPLES`` random ones."""
MISSING = {
    "na",
    "n/a",
    "nan",
    "null",
    "<na>",
    "#n/a",
    "unknown",
    "not available",
    "not applicable",
    "not reported",
    "'--",
}
"""Texts that say that a value is missing, in small letters. GDC tables have some of them in square brackets."""
RESAMPLES = 100_000
"""Random tables for the p value of Fisher's test, which then has an error of about 3 % for a p value of 0.01."""


@dataclass(frozen=True)
class ClinicalTable:
    """A table of clinical or genomic groups.

    Args:
        columns: Column -> patient of the features -> group. Patients without a value are left out.
        matched: Number of patients of the features that are in the table.
        skipped: Column -> why it is not tested, without a value of the table.
        unmatched: Patients of the features that are not in the table.
    """

    columns: dict[str, dict[str, str]]
    matched: int
    skipped: dict[str, str]
    unmatched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Association:
    """A feature and a column, tested on the patients that have both.

    Args:
        feature: Name of the feature.
        column: Name of the column.
        groups: Group -> number of patients, in the order of their names.
        patients: Number of patients.
        fisher_p: p value of Fisher's exact test between the halves of the feature and the groups, two-sided.
        fisher_q: False discovery rate: the expected share of false findings if this pair, and all with a smaller
            ``fisher_p``, are called findings.
        cramers_v: Strength of the association of halves and groups, 0 to 1 (Cramer 1946). Chance alone gives about
            the root of (groups - 1) / (patients - 1).
        kruskal_p: p value of the Kruskal-Wallis test of the feature between the groups.
        kruskal_q: False discovery rate, as ``fisher_q`` is.
        epsilon_squared: Share of the variance of ranks between the groups, 0 to 1 (Tomczak and Tomczak 2014). Chance
            alone gives about (groups - 1) / (patients - 1).
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
        columns: Names of the columns to test; empty for every column of 2 to ``MAX_GROUPS`` groups, or of numbers.

    Raises:
        PipelineError: The file cannot be read, names a patient twice, has none of the patients, or lacks a column; or
            two of the patients are exams of one person.
    """
    table = _read(path)
    if missing := [column for column in columns if column not in table.columns]:
        names = ", ".join(map(shown, table.columns))
        raise PipelineError(f"{path}: no column {shown(missing[0])} (expected some of {names}). Correct --columns.")
    found = _matched(table, path, patients)
    chosen: dict[str, dict[str, str]] = {}
    skipped: dict[str, str] = {}
    for column in columns or table.columns:
        texts = table[column].dropna().str.strip()
        texts = texts[~texts.str.strip("[]").str.lower().isin({"", *MISSING})]
        groups = _groups({one: texts[row] for one, row in found.items() if row in texts.index})
        count = len(set(groups.values()))
        if not 2 <= count <= MAX_GROUPS:
            odd = _not_numbers(groups)
            also = f", and {len(odd)} of {len(groups)} are not numbers" if odd else ""
            skipped[column] = f"{count} different values (expected 2 to {MAX_GROUPS}){also}"
            if odd:  # for the terminal only, because reasons are written into the results
                logger.info("%s: %s is not a number", shown(column), shown(odd[0]))
        elif len(groups) < 2 * count:
            skipped[column] = f"{count} groups of {len(groups)} patients (expected two patients in a group, on average)"
        else:
            chosen[column] = groups
    if columns and not chosen:
        raise PipelineError(f"{path}: {shown(columns[0])} has {skipped[columns[0]]}. Choose another column.")
    return ClinicalTable(chosen, len(found), skipped, [one for one in patients if one not in found])


def _read(path: str | Path) -> pd.DataFrame:
    """The table with the patients as its index. Only empty cells count as missing."""
    options: dict[str, Any] = {"dtype": str, "encoding": "utf-8-sig", "skipinitialspace": True, "compression": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more fields than the header
            table: pd.DataFrame = pd.read_csv(path, **options, index_col=False, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: no such file. Check the path.") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: no text in UTF-8. Save it as CSV in UTF-8.") from error
    except pd.errors.ParserWarning as error:
        raise PipelineError(f"{path}: a row has more fields than the header. Correct the row.") from error
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: no readable CSV file ({shown(error)}). Save it as CSV again.") from error
    if len(table.columns) < 2 and re.search("[;\t]", table.columns[0]):
        raise PipelineError(f"{path}: one column, {shown(table.columns[0])}. Save it with commas between the columns.")
    if len(table.columns) < 2:
        raise PipelineError(
            f"{path}: {len(table.columns)} column (expected patients and another one). Choose another file."
        )
    table = table.dropna(subset=table.columns[:1]).set_index(table.columns[0])
    table.index = table.index.str.strip()
    if table.empty:
        raise PipelineError(f"{path}: a header without rows (expected a row for each patient). Choose another file.")
    if twice := sorted(set(table.index[table.index.map(_plain).duplicated()])):
        raise PipelineError(f"{path}: {shown(twice[0])} has several rows (expected one). Remove the others.")
    return table


def _matched(table: pd.DataFrame, path: str | Path, patients: Sequence[str]) -> dict[str, str]:
    """Patient of the features -> row of the table, for the patients that the table has. GDC ids have hyphens."""
    rows = {_plain(row): row for row in table.index}
    ids = {one: [_plain(one), _plain(person(one))] for one in patients}
    found = {one: rows[name] for one, names in ids.items() if (name := next(filter(rows.__contains__, names), None))}
    by_person: dict[str, str] = {}
    for one in found:
        other = by_person.setdefault(_plain(person(one)), one)
        if other != one:
            raise PipelineError(
                f"{shown(other)} and {shown(one)} are exams of one person (expected one of each person, because the "
                "tests need independent patients). Measure one of them."
            )
    if not found:
        raise PipelineError(
            f"{path}: none of the {len(patients)} patients is in its first column, such as {shown(table.index[0])} "
            f"(expected ids such as {shown(person(patients[0]))}). Correct the ids."
        )
    return found


def _plain(name: str) -> str:
    """An id without case, with underscores, as ids are compared."""
    return name.replace("-", "_").lower()


def _not_numbers(groups: Mapping[str, str]) -> list[str]:
    """The values that are no numbers, of a column that has numbers too."""
    numbers = pd.to_numeric(pd.Series(groups, dtype=str), errors="coerce")
    odd = [groups[str(one)] for one in numbers.index[numbers.isna()]]
    return odd if len(odd) < len(groups) else []


def _groups(groups: dict[str, str]) -> dict[str, str]:
    """Two groups, divided at the median, where the values are measures; else one group for each value.

    Measures are numbers with more than ``MAX_GROUPS`` values. So are numbers of more than ``MAX_CODES`` values that are
    no codes: codes are whole numbers within a range of ``MAX_GROUPS``.
    """
    numbers = pd.to_numeric(pd.Series(groups, dtype=str), errors="coerce")
    if numbers.isna().any() or numbers.empty:
        return groups
    are_codes = (numbers % 1 == 0).all() and numbers.max() - numbers.min() < MAX_GROUPS
    if numbers.nunique() <= (MAX_GROUPS if are_codes else MAX_CODES):  # 1 and 1.0 are one group
        return {str(one): f"{value:.15g}" for one, value in numbers.items()}
    middle = float(numbers.median())
    if middle == numbers.max():
        low, high, above = f"below {middle:g}", f"{middle:g} or more", numbers >= middle
    else:
        low, high, above = f"up to {middle:g}", f"above {middle:g}", numbers > middle
    return {str(one): high if value else low for one, value in above.items()}


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

    pairs, untested = [], []
    for feature, values in features.items():
        if not values:
            untested.append(f"no mask has {feature}, which in mm or ml needs a voxel size (--spacing)")
            continue
        for column, groups in clinical.columns.items():
            if found := _tested(feature, values, column, groups, seed):
                pairs.append(found)
            else:
                why = "all values or groups are equal" if set(values) & set(groups) else "no patient has both"
                untested.append(f"{feature} and {shown(column)}: {why}")
    if not pairs:
        reasons = untested or [f"{shown(column)} has {why}" for column, why in clinical.skipped.items()]
        raise PipelineError(
            f"no association can be tested ({'; '.join(reasons[:3]) or 'no feature is named'}). "
            "Choose other features or another table."
        )
    for reason in untested:
        logger.warning("not tested: %s", reason)
    for kind in ("fisher", "kruskal"):
        rates = false_discovery_control([pair[f"{kind}_p"] for pair in pairs])
        for pair, rate in zip(pairs, rates, strict=True):
            pair[f"{kind}_q"] = float(rate)
    return sorted((Association(**pair) for pair in pairs), key=lambda one: (one.fisher_p, one.kruskal_p))


def _tested(feature: str, values: Values, column: str, groups: Mapping[str, str], seed: int) -> dict[str, Any] | None:
    """The attributes of an ``Association`` without false discovery rates; None if there is nothing to test."""
    from scipy.stats import kruskal, mannwhitneyu
    from scipy.stats.contingency import association

    table = pd.DataFrame({"value": values, "group": groups}).dropna()
    middle = table["value"].median()
    halves = table["value"] > middle
    if not halves.any():  # half of all patients or more have the largest value
        halves = table["value"] >= middle
    counts = pd.crosstab(halves, table["group"])
    if min(counts.shape) < 2:
        return None
    parts = {str(name): part["value"].to_numpy() for name, part in table.groupby("group")}
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
        "fisher_p": fisher_p(counts.to_numpy(), seed),
        "cramers_v": float(association(counts, method="cramer")),
        "kruskal_p": float(ranks.pvalue),
        "epsilon_squared": float(ranks.statistic / (len(table) - 1)),
        "medians": {name: float(np.median(part)) for name, part in parts.items()},
        "auc": auc,
    }


def fisher_p(table: NDArray[np.integer[Any]], seed: int = 0) -> float:
    """The two-sided p value of Fisher's exact test for a table of two rows (Freeman and Halton 1951).

    It is the probability of all tables with the same sums that are at most as probable as this one.

    Args:
        table: (2, K), counts of K groups in both halves.
        seed: Seed of random tables, which are drawn where there are more than ``MAX_TABLES``.

    Examples:
        >>> import numpy as np
        >>> print(f"{fisher_p(np.array([[4, 0], [0, 4]])):.4f}")
        0.0286
    """
    from scipy.stats import MonteCarloMethod, fisher_exact, multivariate_hypergeom

    groups, upper = table.sum(axis=0), int(table[1].sum())
    if np.prod(groups[:-1] + 1.0) > MAX_TABLES:
        drawn = fisher_exact(table, method=MonteCarloMethod(RESAMPLES, rng=np.random.default_rng(seed)))
        return float(np.ravel(drawn.pvalue)[0])
    most = np.indices(groups[:-1] + 1).reshape(len(groups) - 1, -1).T
    every = np.column_stack([most, upper - most.sum(axis=1)])
    every = every[(every[:, -1] >= 0) & (every[:, -1] <= groups[-1])]
    chances = multivariate_hypergeom.pmf(every, groups, upper)
    seen = multivariate_hypergeom.pmf(table[1], groups, upper)
    return float(min(1.0, chances[chances <= seen * (1 + 1e-7)].sum()))


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
