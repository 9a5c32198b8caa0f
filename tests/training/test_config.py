"""The schedules of the learning rate, and what an option may be."""

import math

import pytest
from small_training import config

from kit import InputError
from kit.recipes import SMALL_RESNEXT
from kit.training.config import ClassifierConfig, LSTMConfig, TrainingConfig, learning_rate_at


def test_learning_rates_by_hand():
    exponential = config(schedule="exponential", learning_rate=1.0)
    assert learning_rate_at(exponential, 3, 5, 10) == pytest.approx(0.95**2)
    assert learning_rate_at(config(learning_rate=0.5), 3, 5, 10) == 0.5
    cycle = config(schedule="one-cycle", learning_rate=1.0, epochs=1)
    steps = 100
    assert learning_rate_at(cycle, 1, 0, steps) == pytest.approx(0.04)
    assert learning_rate_at(cycle, 1, 30, steps) == pytest.approx(1.0)
    assert learning_rate_at(cycle, 1, 65, steps) == pytest.approx(0.5)
    last = (1 + math.cos(math.pi * 69 / 70)) / 2  # 69 of the 70 steps after the highest rate
    assert learning_rate_at(cycle, 1, 99, steps) == pytest.approx(last)
    assert last == pytest.approx(5.03e-4, rel=1e-2)
    assert learning_rate_at(cycle, 1, 0, 1) > 0  # also where it is the only step


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (TrainingConfig, {"schedule": "cosine"}, "schedule 'cosine' is none of constant, expon"),
        (TrainingConfig, {"opt_level": "O9"}, "opt_level 'O9' is none of O0, O1, O2, O3"),
        (TrainingConfig, {"epochs": 0}, "epochs is 0; it must be at least 1"),
        (TrainingConfig, {"epochs": True}, "epochs is True; it must be a whole number"),
        (TrainingConfig, {"epochs": 2.0}, "epochs is 2.0; it must be a whole number"),
        (TrainingConfig, {"learning_rate": math.nan}, "learning_rate is nan; it must be a number"),
        (
            TrainingConfig,
            {"learning_rate": "x" * 10_000},
            r"is 'x+\.\.\.x+'; it must be a number",
        ),
        (LSTMConfig, {"packed": "no"}, "packed is 'no'; it must be true or false"),
        (LSTMConfig, {"hidden_size": 10**9}, "hidden_size is 1000000000; it must be at most 16384"),
        (LSTMConfig, {"embedding_size": 0}, "embedding_size is 0; it must be at least 1"),
        (ClassifierConfig, {"weights": None}, "weights is None; it must be a text"),
        (ClassifierConfig, {"architecture_options": []}, "it must be a JSON object"),
        (ClassifierConfig, {"architecture_options": {"layers": [10**9]}}, "larger than those of"),
        (
            ClassifierConfig,
            {"architecture_options": {"layers": [0] * 999_999}},
            "larger than those of",
        ),
        (ClassifierConfig, {"architecture_options": {"a": [[[[[[]]]]]]}}, "larger than those of"),
        (ClassifierConfig, {"architecture_options": {"a": math.nan}}, "larger than those of"),
    ],
)
def test_an_option_of_another_type_or_out_of_range_is_refused(kind, changes, reason):
    with pytest.raises(InputError, match=reason):
        kind(**changes)


def test_the_options_of_real_models_are_taken():
    for options in (SMALL_RESNEXT, {"act_layer": "gelu", "depths": (3, 3, 27, 3), "rate": 0.1}, {}):
        assert ClassifierConfig(architecture_options=options).architecture_options == options
