"""Intervals: against hand-computed numbers, and as often right as they say."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.evaluate.statistics import Estimate, by_cluster, clustered_ratio, paired_difference, proportion

NOMINAL, TOLERANCE = 0.95, 0.015
counts = st.integers(1, 300).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))


def test_a_clustered_ratio_by_hand() -> None:
    """Ratio 12 / 6 = 2; residuals -1, -1, 2; variance 3 / 2 * 6 / 36 = 1 / 4; t(0.975, 2) = 4.302653."""
    estimate = clustered_ratio([1, 3, 8], [1, 2, 3])
    assert (estimate.value, estimate.clusters) == (2.0, 3)
    assert estimate.high - estimate.value == pytest.approx(4.302653 / 2, rel=1e-6)
    assert estimate.value - estimate.low == pytest.approx(4.302653 / 2, rel=1e-6)


def test_clusters_of_one_unit_give_students_interval_of_a_mean() -> None:
    values = [0.3, 1.7, 2.2, -0.4, 0.9]
    low, high = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    estimate = clustered_ratio(values, [1] * 5, level=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_one_cluster_says_nothing_about_others() -> None:
    estimate = clustered_ratio([6.0], [3.0])
    assert estimate == Estimate(2.0, -math.inf, math.inf, 1)
    assert not any(estimate.excludes(value) for value in (-1e300, 0.0, 2.0, 1e300))


def test_a_cluster_split_in_equal_halves_is_no_new_information() -> None:
    """Counting each document twice must narrow the interval by no more than sqrt(2): what counts is clusters."""
    rng = np.random.default_rng(1)
    sums, sizes = rng.normal(size=40), np.ones(40)
    whole, tokens = clustered_ratio(sums * 100, sizes * 100), clustered_ratio(sums, sizes)
    assert (whole.low, whole.high) == pytest.approx((tokens.low, tokens.high))


def coverage_of_clustered_ratio(clusters: int, repeats: int) -> float:
    """Documents of unequal length whose tokens share an effect; the truth is the ratio of expectations."""
    rng = np.random.default_rng(20240)
    covered = 0
    for _ in range(repeats):
        sizes = rng.integers(20, 60, clusters)
        effects = rng.normal(1.0, 0.5, clusters)
        sums = sizes * effects + rng.normal(0, 1, clusters) * np.sqrt(sizes)
        covered += not clustered_ratio(sums, sizes).excludes(1.0)
    return covered / repeats


@pytest.mark.parametrize("clusters", [8, 40])
def test_a_clustered_interval_covers_as_often_as_it_says(clusters: int) -> None:
    assert coverage_of_clustered_ratio(clusters, 4000) == pytest.approx(NOMINAL, abs=TOLERANCE)


def test_an_interval_over_tokens_would_not() -> None:
    """The reason for clusters: tokens taken as independent give an interval that is far too short."""
    rng = np.random.default_rng(2)
    covered, repeats = 0, 300
    for _ in range(repeats):
        tokens = (rng.normal(0, 1, (20, 1)) + rng.normal(0, 1, (20, 30))).ravel()
        covered += not clustered_ratio(tokens, np.ones(600)).excludes(0.0)
    assert covered / repeats < 0.7


@pytest.mark.parametrize(("successes", "low", "high"), [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)])
def test_wilsons_interval_of_ten_trials(successes: int, low: float, high: float) -> None:
    """Published values (Brown, Cai and DasGupta, 2001, use the same formula)."""
    estimate = proportion(successes, 10)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


@given(counted=counts, level=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_a_proportions_interval_holds_it_and_stays_inside(counted: tuple[int, int], level: float) -> None:
    successes, trials = counted
    estimate = proportion(successes, trials, level)
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1
    mirrored = proportion(trials - successes, trials, level)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((estimate.low, estimate.high), abs=1e-12)


def test_a_proportion_never_excludes_itself() -> None:
    for trials in range(1, 200):
        assert not proportion(0, trials).excludes(0.0)
        assert not proportion(trials, trials).excludes(1.0)


@pytest.mark.parametrize(("trials", "share"), list(product([100, 400], [0.2, 0.5, 0.8])))
def test_a_proportions_interval_covers_as_often_as_it_says(trials: int, share: float) -> None:
    """The coverage itself, summed over all outcomes: nothing is drawn."""
    covered = [k for k in range(trials + 1) if not proportion(k, trials).excludes(share)]
    assert stats.binom.pmf(covered, trials, share).sum() == pytest.approx(NOMINAL, abs=TOLERANCE)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(3)
    common, sizes = rng.normal(0, 100, 30), np.ones(30)
    first, second = common + 1 + rng.normal(0, 0.1, 30), common + rng.normal(0, 0.1, 30)
    difference = paired_difference(first, second, sizes)
    assert difference.excludes(0)
    assert not difference.excludes(1)
    assert paired_difference(second, first, sizes).value == pytest.approx(-difference.value)


def test_a_model_against_itself_differs_by_nothing() -> None:
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1, 1, 1])
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    assert not same.excludes(0.0)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_no_number_excludes_nothing() -> None:
    assert not clustered_ratio([math.nan, 1.0], [1, 1]).excludes(0.0)
    assert not clustered_ratio([math.inf, 1.0], [1, 1]).excludes(0.0)


@pytest.mark.parametrize(("sums", "sizes"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([[1.0]], [[1.0]])])
def test_nothing_to_average_is_refused(sums: list[float], sizes: list[float]) -> None:
    with pytest.raises(ValueError, match=r"nothing to average over|one sum and one size"):
        clustered_ratio(sums, sizes)


def test_a_proportion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to take a proportion of"):
        proportion(0, 0)


@given(entries=st.lists(st.tuples(st.integers(-99, 99), st.sampled_from("abcd"))))
def test_clusters_are_summed_in_order_of_appearance(entries: list[tuple[int, str]]) -> None:
    names, sums = by_cluster([value for value, _ in entries], [name for _, name in entries])
    plain: dict[str, float] = {}
    for value, name in entries:
        plain[name] = plain.get(name, 0) + value
    assert dict(zip(names, sums, strict=True)) == plain
    assert names == list(plain)
