"""The schedules of the learning rate."""

import pytest
from small_training import config

from kit.training.config import learning_rate_at


def test_learning_rates_by_hand():
    exponential = config(schedule="exponential", learning_rate=1.0)
    assert learning_rate_at(exponential, 3, 5, 10) == pytest.approx(0.95**2)
    assert learning_rate_at(config(learning_rate=0.5), 3, 5, 10) == 0.5
    cycle = config(schedule="one-cycle", learning_rate=1.0, epochs=1)
    steps = 101
    assert learning_rate_at(cycle, 1, 0, steps) == pytest.approx(0.04)
    assert learning_rate_at(cycle, 1, 30, steps) == pytest.approx(1.0)
    assert learning_rate_at(cycle, 1, 65, steps) == pytest.approx(0.5)
    assert learning_rate_at(cycle, 1, 100, steps) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="'cosine' is none of"):
        learning_rate_at(config(schedule="cosine"), 1, 0, 1)
