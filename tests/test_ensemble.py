import re

import numpy as np
import pandas as pd
import pytest
from conftest import golden
from sklearn.metrics import log_loss

from kit import InputError
from kit.competition import LABELS, to_submission, weighted_log_loss
from kit.ensemble import bag, rolling_mean, score, score_folds


def make_members():
    values = golden("submission")
    members = [
        pd.DataFrame(member, index=values["images"], columns=list(LABELS))
        for member in values["predictions"]
    ]
    return values, members


def test_the_bag_equals_the_published_submission():
    values, members = make_members()
    submission = to_submission(bag(members))
    np.testing.assert_array_equal(submission["ID"], values["ID"])
    np.testing.assert_array_equal(submission["Label"], values["Label"])


def test_the_metric_equals_the_published_value_and_scikit_learn():
    values, members = make_members()
    bagged = bag(members).to_numpy()
    assert weighted_log_loss(values["labels"], bagged) == pytest.approx(
        float(values["weighted_log_loss"]), abs=1e-12
    )
    expected = log_loss(
        values["labels"].ravel(), bagged.ravel(), sample_weight=np.tile([1, 1, 1, 1, 1, 2], 50)
    )
    assert score(values["labels"], bagged)["weighted"] == pytest.approx(expected, rel=1e-12)


def test_members_in_another_order_are_aligned():
    _, members = make_members()
    shuffled = [member.sample(frac=1, random_state=3)[list(LABELS)[::-1]] for member in members[1:]]
    pd.testing.assert_frame_equal(bag([members[0], *shuffled]), bag(members), rtol=0, atol=0)


def test_a_member_of_other_images_is_refused():
    _, members = make_members()
    with pytest.raises(ValueError, match="member 2 of the bag has other images"):
        bag([members[0], members[1].iloc[1:]])
    renamed = members[1].rename(index={members[1].index[4]: "ID_stranger"})
    with pytest.raises(ValueError, match="member 2 of the bag has other images"):
        bag([members[0], renamed])
    twice = members[1].iloc[[0, *range(len(members[1]) - 1)]]
    with pytest.raises(ValueError, match="member 2 of the bag has other images"):
        bag([members[0], twice])


@pytest.mark.parametrize("value", [7.0, -0.1, np.nan, np.inf])
def test_a_value_that_is_no_probability_is_refused_not_clipped(value):
    _, members = make_members()
    members[1].iloc[3, 2] = value
    sentence = f"member 2 of the bag has {value:g} for {members[1].index[3]}, intraventricular: no"
    with pytest.raises(InputError, match=re.escape(sentence)):
        bag(members)


def test_an_empty_bag_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        bag([])


def test_probabilities_are_clipped():
    frame = pd.DataFrame([[0.0, 1, 0.5, 0, 0, 1]], index=["x"], columns=list(LABELS))
    assert bag([frame]).iloc[0].tolist() == [1e-5, 1 - 1e-5, 0.5, 1e-5, 1e-5, 1 - 1e-5]


def test_the_rolling_mean_by_hand():
    column = np.array([0.0, 1.0, 0.0, 0.5, 1.0])
    smooth = rolling_mean(np.tile(column[:, None], 6), ["a", "a", "a", "b", "b"])[:, 0]
    # ends have two of the three weights: 0.6 and 0.2
    expected = [0.2 / 0.8, 0.6, 0.2 / 0.8, (0.6 * 0.5 + 0.2) / 0.8, (0.6 + 0.2 * 0.5) / 0.8]
    np.testing.assert_allclose(smooth, expected)


def test_the_rolling_mean_of_a_single_slice_is_itself():
    assert rolling_mean(np.full((1, 6), 0.3), ["a"])[0, 0] == pytest.approx(0.3)


def test_scores_are_given_per_fold_and_overall():
    values, members = make_members()
    table = pd.DataFrame(values["labels"], columns=list(LABELS)).assign(fold=[0] * 20 + [1] * 30)
    bagged = bag(members).to_numpy()
    scores = score_folds(table, {"bag": bagged})["bag"]
    assert set(scores) == {"all", "0", "1"}
    assert scores["1"]["weighted"] == pytest.approx(
        weighted_log_loss(values["labels"][20:], bagged[20:])
    )
    mean = 0.4 * scores["0"]["any"] + 0.6 * scores["1"]["any"]
    assert scores["all"]["any"] == pytest.approx(mean)
