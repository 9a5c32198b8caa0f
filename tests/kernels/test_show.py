"""What a notebook shows of its submission."""

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.kernels.cells import Prediction
from kit.kernels.show import show_slices, tabulate_labels
from kit.runs.directory import Run
from kit.submission import write_submission


def describe(folder, probabilities):
    submission = folder / "submission.csv"
    wide = pd.DataFrame(probabilities, ["ID_a", "ID_b"], list(LABELS))
    write_submission(wide, submission)
    return Prediction(folder, Run(folder), np.full(6, 0.2), submission, submission)


def test_means_stand_beside_the_prior(tmp_path):
    low, high = [0.1] * 6, [0.3, 0.3, 0.3, 0.3, 0.3, 0.9]
    table = tabulate_labels(describe(tmp_path, [low, high]))
    assert table.loc["epidural"].tolist() == [0.2, 0.2, 1.0, 0.1, 0.3]
    assert table.loc["any"].tolist() == [0.5, 0.2, 2.5, 0.1, 0.9]


def test_without_predictions_there_is_nothing_to_show(tmp_path, capsys):
    show_slices(describe(tmp_path, np.full((2, 6), 0.2)))
    assert capsys.readouterr().out == "There are no predictions to show.\n"
