import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import recall_score
from statsmodels.stats.proportion import proportion_confint

from kit.evaluation.rates import (
    Counts,
    choose_thresholds,
    count_cells,
    measure_rates,
    measure_ratio,
    measure_share,
)


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (7, 7), (1, 3), (62, 84), (5, 1000)])
def test_the_interval_of_a_share_is_wilsons(part, whole):
    share, low, high = measure_share(part, whole)
    assert share == part / whole
    expected = proportion_confint(part, whole, method="wilson")
    np.testing.assert_allclose([low, high], expected, atol=1e-12)
    scipy = binomtest(part, whole).proportion_ci(method="wilson")
    np.testing.assert_allclose([low, high], [scipy.low, scipy.high], atol=1e-12)


def test_the_published_table_is_recomputed():
    """Of 84 positive scans 62 were found: sensitivity 73.8 %, PPV 18.6 %, as was published."""
    counts = Counts(62, 271, 1017, 22)  # of 1,372 scans
    rates = measure_rates(counts)
    assert f"{rates['sensitivity'].value:.1%}" == "73.8%"
    assert f"{rates['PPV'].value:.1%}" == "18.6%"
    assert rates["sensitivity"].low == pytest.approx(0.635, abs=0.001)
    assert rates["sensitivity"].high == pytest.approx(0.820, abs=0.001)


def test_all_rates_of_a_table_by_hand():
    rates = measure_rates(Counts(tp=8, fp=5, tn=15, fn=2), prevalence=0.1)
    values = {name: rate.value for name, rate in rates.items()}
    assert values == {
        "sensitivity": 0.8,
        "specificity": 0.75,
        "PPV": pytest.approx(8 / 13),
        "NPV": pytest.approx(15 / 17),
        "accuracy": pytest.approx(23 / 30),
        "LR+": pytest.approx(0.8 / 0.25),
        "LR−": pytest.approx(0.2 / 0.75),
        # Bayes: .1 × .8 / (.1 × .8 + .9 × .25), and .9 × .75 / (.9 × .75 + .1 × .2)
        "PPV at prevalence 0.1": pytest.approx(0.08 / 0.305),
        "NPV at prevalence 0.1": pytest.approx(0.675 / 0.695),
    }
    for rate in rates.values():
        assert rate.low < rate.value < rate.high


def test_a_likelihood_ratio_has_simels_interval():
    ratio = measure_ratio(8, 10, 5, 20)
    error = np.sqrt(1 / 8 - 1 / 10 + 1 / 5 - 1 / 20)
    assert ratio.low == pytest.approx(3.2 / np.exp(1.959964 * error), rel=1e-6)
    assert ratio.high == pytest.approx(3.2 * np.exp(1.959964 * error), rel=1e-6)


def test_what_is_not_defined_is_nan():
    rates = measure_rates(Counts(tp=0, fp=0, tn=9, fn=0))
    for name in ("sensitivity", "PPV", "LR+", "LR−"):
        assert np.isnan(rates[name]).all()
    assert rates["specificity"].value == 1
    perfect = measure_rates(Counts(tp=5, fp=0, tn=5, fn=0))
    assert np.isnan(perfect["LR+"].value)
    assert perfect["LR−"].value == 0
    assert np.isnan(perfect["LR−"].low)


def test_predictive_values_at_a_prevalence_need_no_likelihood_ratio():
    """All 9 alarms are right and one of 10 positives is missed: Bayes still answers."""
    rates = measure_rates(Counts(tp=9, fp=0, tn=5, fn=1), prevalence=0.1)
    assert rates["PPV at prevalence 0.1"].value == 1
    assert np.isnan(rates["PPV at prevalence 0.1"][1:]).all()
    # .9 × 1 / (.9 × 1 + .1 × .1)
    assert rates["NPV at prevalence 0.1"].value == pytest.approx(0.9 / 0.91)
    blind = measure_rates(Counts(tp=5, fp=5, tn=0, fn=2), prevalence=0.1)
    assert blind["NPV at prevalence 0.1"].value == 0
    assert blind["PPV at prevalence 0.1"].value == pytest.approx(0.1 * 5 / 7 / (0.1 * 5 / 7 + 0.9))
    none = measure_rates(Counts(tp=5, fp=5, tn=0, fn=0), prevalence=0.1)
    assert np.isnan(none["NPV at prevalence 0.1"].value)
    assert np.isnan(measure_rates(Counts(0, 1, 5, 0), 0.1)["PPV at prevalence 0.1"].value)


def test_a_row_at_the_threshold_is_called_positive():
    assert count_cells(np.array([1, 1, 0, 0]), np.array([0.5, 0.4, 0.5, 0.4]), 0.5) == (1, 1, 1, 1)


def test_thresholds_reach_what_they_are_named_for():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    probabilities = np.round(random.random(400) * 0.6 + labels * 0.4, 2)
    chosen = choose_thresholds(labels, probabilities)

    def rates(threshold):
        called = (probabilities >= threshold).astype(int)
        return recall_score(labels, called), recall_score(1 - labels, 1 - called)

    every = {threshold: rates(threshold) for threshold in np.unique(probabilities)}
    reached = [t for t, (sensitivity, _) in every.items() if sensitivity >= 0.9]
    assert chosen["sensitivity 0.9"] == max(reached)
    assert chosen["specificity 0.9"] == min(t for t, (_, s) in every.items() if s >= 0.9)
    best = max(sum(pair) for pair in every.values())
    assert sum(every[chosen["Youden"]]) == pytest.approx(best)


def test_no_threshold_is_chosen_with_one_class():
    assert choose_thresholds(np.ones(5), np.linspace(0, 1, 5)) == {}
