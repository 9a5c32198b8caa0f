import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.report.ranking import rank_series


def test_the_worst_series_come_first_and_the_rest_are_spread():
    table = pd.DataFrame({"series": [f"s{n:02}" for n in range(21)]})
    chosen, means = rank_series(table, np.tile(np.arange(21.0)[:, None], 7), shown=10)
    # Eight worst; then of the thirteen left the first and the last.
    assert chosen == ["s20", "s19", "s18", "s17", "s16", "s15", "s14", "s13", "s12", "s00"]
    assert means["weighted"].tolist() == list(range(20, -1, -1))
    assert len(rank_series(table, np.zeros((21, 7)), shown=50)[0]) == 21


def test_the_worst_series_of_a_label_is_shown_though_its_weighted_loss_is_low():
    table = pd.DataFrame({"series": [f"s{n:02}" for n in range(21)]})
    values = np.tile(np.arange(21.0)[:, None], 7)
    values[[3, 1], LABELS.index("subdural")] = 99, 98
    # In turn: of the first rank s20 and s03, of the second s19 and s01; of the 17 left, one.
    chosen, _ = rank_series(table, values, shown=5)
    assert chosen == ["s20", "s19", "s18", "s03", "s01"]


def test_of_fifty_series_shown_each_labels_five_worst_are_among_them():
    values = np.random.default_rng(4).random((400, 7))
    table = pd.DataFrame({"series": [f"s{n:03}" for n in range(400)]})
    chosen, _ = rank_series(table, values, shown=50)
    assert len(set(chosen)) == 50
    for column in values.T:
        assert set(table["series"][np.argsort(column)[-5:]]) <= set(chosen)


def test_a_series_may_be_rated_by_its_highest_slice():
    table = pd.DataFrame({"series": ["a", "a", "b", "b"]})
    values = np.tile(np.array([[0.9], [0.0], [0.6], [0.6]]), 7)
    assert rank_series(table, values, shown=9)[0] == ["b", "a"]
    chosen, highest = rank_series(table, values, shown=9, measure="max")
    assert chosen == ["a", "b"]
    assert highest["weighted"].tolist() == [0.9, 0.6]
