"""What the stages of a run cost."""

import json

import pytest

from kit.runs.directory import Run, RunError
from kit.runs.timings import read_timings, time_stage


def test_every_stage_says_what_it_cost(small_run):
    timings = json.loads(small_run.timings.read_text())
    assert {"index", "fold0 classifier", "fold1 embeddings", "fold1 LSTM", "report"} <= set(timings)
    for cost in timings.values():
        assert cost["seconds"] > 0
        assert 0 < cost["processor_seconds"] < 8 * cost["seconds"] + 1
        assert cost["gpu_seconds"] in (0, cost["seconds"])


def test_what_a_second_call_costs_is_added(tmp_path):
    run = Run(tmp_path)
    spent = {"seconds": 5.0, "processor_seconds": 2.0, "gpu_seconds": 0.0}
    run.timings.write_text(json.dumps({"index": spent}))
    with time_stage(run, "index", run.slices):
        pass
    assert 5 <= read_timings(run)["index"]["seconds"] < 6


@pytest.mark.parametrize("cost", [3, {}, {"seconds": "1"}, None])
def test_costs_that_kit_did_not_write_are_refused_by_name(tmp_path, cost):
    Run(tmp_path).timings.write_text(json.dumps({"index": cost}))
    with pytest.raises(RunError, match=r"timings\.json: not the costs of 'index'; move the file"):
        read_timings(Run(tmp_path))
