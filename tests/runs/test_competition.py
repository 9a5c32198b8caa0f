"""The competition's test part, predicted by a trained run: what is refused."""

import numpy as np
import pandas as pd
import pytest

from kit.competition import LABELS
from kit.runs.competition import predict_competition


def test_a_sample_of_other_images_writes_no_submission(small_run, small_data, tmp_path):
    (tmp_path / "stage_2_test").symlink_to(small_data / "stage_2_test")
    sample = tmp_path / "stage_2_sample_submission.csv"
    out, prior = tmp_path / "out.csv", np.full(6, 0.1)
    with pytest.raises(FileNotFoundError, match="test part or its sample submission is missing"):
        predict_competition(tmp_path, small_run, out, prior)
    ids = [f"ID_{number:09x}_{label}" for number in range(2) for label in LABELS]
    pd.DataFrame({"ID": ids, "Label": 0.5}).to_csv(sample, index=False)
    with pytest.raises(ValueError, match="none of its images is among the predicted slices"):
        predict_competition(tmp_path, small_run, out, prior, workers=0)
    assert not out.exists()
