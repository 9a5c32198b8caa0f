"""What the patients of a phantom have: shares that hold in every phantom, however small."""

from collections import Counter

import pytest

from kit.phantom.plan import ENCODINGS, plan_patients


def test_traits_have_fixed_shares_of_the_patients():
    plan = plan_patients(60, seed=2)
    spacings = Counter(patient.spacing for patient in plan)
    # 5 %, 5 %, 35 % and the rest.
    assert spacings == {"paired": 3, "thin": 3, "variable": 21, "even": 33}
    assert sum(patient.bleeding is not None for patient in plan) == 33  # 55 %
    assert sum(len(patient.study_ids) == 2 for patient in plan) == 4  # 6 %, rounded up
    assert sum(patient.test for patient in plan) == 10  # a sixth


@pytest.mark.parametrize("patients", [3, 24])
def test_each_part_has_one_truncated_file_and_the_training_part_one_wrong_intercept(patients):
    for seed in range(5):
        plan = plan_patients(patients, seed)
        assert sorted(p.test for p in plan if p.truncated) == [False, True]
        (wrong,) = [patient for patient in plan if patient.wrong_intercept]
        assert not wrong.test
        assert not wrong.truncated
        assert wrong.encoding == ENCODINGS[3]


def test_ids_are_unique():
    plan = plan_patients(24, seed=1)
    for field in ("study_ids", "series_ids", "slice_ids"):
        ids = [name for patient in plan for name in getattr(patient, field)]
        assert len(set(ids)) == len(ids)
