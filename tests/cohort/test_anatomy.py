"""Phantoms have a lesion in a possible place, visible in every sequence, and no FLAIR threshold finds it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.cohort.anatomy import end_margin, make_patient


@pytest.mark.parametrize("slices", [4, 5, 12])
def test_every_patient_has_a_lesion_away_from_both_ends(slices):
    depths = set()
    for index in range(30):
        image, mask = make_patient(index, size=32, slices=slices, seed=3)
        depths.add(len(image))
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert 0.75 * slices - 1 <= len(image) <= 1.25 * slices + 1
        assert set(np.unique(mask)) == {0, 255}
        free = end_margin(len(image))
        assert free >= max(1, len(image) // 8)
        assert not mask[:free].any()
        assert not mask[-free:].any()
        assert image.max(axis=(0, 1, 2)).min() > 40, "a channel is all but black"
    assert len(depths) > 1


def test_lesion_free_patient_is_the_same_head():
    image, mask = make_patient(1, size=64, slices=8, seed=0)
    plain, empty = make_patient(1, size=64, slices=8, seed=0, lesion=False)
    assert mask.any()
    assert not empty.any()
    healthy = ~mask.any(axis=(1, 2))
    np.testing.assert_array_equal(image[[0, -1]], plain[[0, -1]])
    assert healthy.sum() >= 2
    assert not np.array_equal(image, plain)


def best_threshold_dsc(volumes: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean per-volume DSC of the one threshold that is best for all volumes together."""
    thresholds = np.unique(
        np.quantile(np.concatenate([flair.ravel() for flair, _ in volumes]), np.linspace(0.5, 1, 200))
    )
    means = []
    for threshold in thresholds:
        scores = []
        for flair, truth in volumes:
            found = flair > threshold
            scores.append(2 * np.sum(found & truth) / (found.sum() + truth.sum()))
        means.append(float(np.mean(scores)))
    return max(means)


def test_no_single_flair_threshold_finds_the_lesions():
    plain, percentile, rank, brain = [], [], [], []
    for index in range(12):
        image, mask = make_patient(index, size=64, slices=12, seed=0)
        flair, truth = image[..., 1].astype(float), mask > 0
        plain.append((flair, truth))
        low, high = np.percentile(flair, (1, 99))
        percentile.append(((flair - low) / (high - low), truth))
        rank.append((flair.ravel().argsort().argsort().reshape(flair.shape) / flair.size, truth))
        inner = flair[flair > 20]
        brain.append(((flair - inner.mean()) / inner.std(), truth))
    assert best_threshold_dsc([(truth.astype(float), truth) for _, truth in plain]) == 1.0, "the search itself fails"
    assert best_threshold_dsc(plain) < 0.6
    # The same is true after each volume is normalised, by percentiles, by rank, or only over the brain.
    assert best_threshold_dsc(percentile) < 0.6
    assert best_threshold_dsc(rank) < 0.6
    assert best_threshold_dsc(brain) < 0.6


def test_lesions_differ_from_their_surroundings_in_every_sequence():
    for index in range(8):
        image, mask = make_patient(index, size=64, slices=8, seed=0)
        plain, _ = make_patient(index, size=64, slices=8, seed=0, lesion=False)
        change = image[mask > 0].astype(float).mean(axis=0) - plain[mask > 0].astype(float).mean(axis=0)
        assert change[1] > 3
        assert change[0] < -2 or np.array_equal(image[..., 0], image[..., 1])
