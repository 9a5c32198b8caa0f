"""Two runs side by side: on which slices, with which difference, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from report_pages import read_data

from kit import InputError
from kit.cli.commands import main
from kit.competition import LABELS, weighted_log_loss
from kit.ensemble import name_columns
from kit.report.comparison import compare_runs
from kit.runs.directory import Run


def change_predictions(run: Run, change) -> None:
    """Rewrite the run's out-of-fold table with what `change` makes of it."""
    change(pd.read_parquet(run.oof)).to_parquet(run.oof, index=False)


def test_two_runs_are_compared_slice_by_slice_on_what_both_held_out(small_run, copied_run):
    """The other run lost its last patient, stands in another order, and is worse."""
    columns = name_columns("bag")

    def worsen(table):
        table = table[table["PatientID"] != table["PatientID"].iloc[-1]].iloc[::-1]
        return table.assign(**{name: 0.9 * table[name] + 0.05 for name in columns})

    change_predictions(copied_run, worsen)
    found = compare_runs(small_run, copied_run)
    other = pd.read_parquet(copied_run.oof).set_index("SOPInstanceUID").iloc[::-1]
    own = pd.read_parquet(small_run.oof).set_index("SOPInstanceUID").loc[other.index]
    assert (found["slices"], found["patients"]) == (len(own), own["PatientID"].nunique())
    assert found["name"] == copied_run.path.name
    losses = [
        weighted_log_loss(part[list(LABELS)].to_numpy(), part[columns].to_numpy())
        for part in (own, other)
    ]
    assert found["run"][-1][0] == pytest.approx(losses[0], abs=1e-6)
    assert found["other"][-1][0] == pytest.approx(losses[1], abs=1e-6)
    mean, low, high = found["difference"][-1]
    assert mean == pytest.approx(losses[1] - losses[0], abs=2e-6)
    assert low < mean < high
    # Paired: far narrower than the intervals of the two losses.
    assert high - low < 0.5 * (found["run"][-1][2] - found["run"][-1][1])


def test_the_command_writes_the_comparison_into_the_page(small_run, copied_run, capsys):
    assert main(["report", str(copied_run), str(small_run)]) == 0
    (one,) = read_data(copied_run.report)["comparisons"]
    assert one["name"] == small_run.path.name
    np.testing.assert_array_equal(one["difference"], np.zeros((7, 3)))


def test_runs_that_cannot_be_compared_are_refused(small_run, copied_run, capsys):
    change_predictions(copied_run, lambda table: table.assign(any=1 - table["any"]))
    with pytest.raises(InputError, match="were trained with different labels"):
        compare_runs(small_run, copied_run)
    change_predictions(
        copied_run, lambda table: table.assign(SOPInstanceUID="x" + table["SOPInstanceUID"])
    )
    with pytest.raises(InputError, match="have no held-out slice in common"):
        compare_runs(small_run, copied_run)
    copied_run.oof.unlink()
    with pytest.raises(InputError, match="no slice was held out"):
        compare_runs(small_run, copied_run)
    assert main(["report", str(small_run), str(copied_run.path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
