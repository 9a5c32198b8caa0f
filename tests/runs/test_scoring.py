"""The bag of a run and of several runs; figures recomputed here from the files they leave."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import copy_run
from sklearn.metrics import log_loss

from kit.cli.tables import format_scores
from kit.competition import LABELS, read_labels
from kit.ensemble import MODELS, name_columns
from kit.runs.scoring import blend_runs, combine
from kit.submission import read_sample, validate_submission


def test_the_submission_has_the_samples_ids_and_the_bagged_probabilities(small_run, small_data):
    sample = small_data / "stage_2_sample_submission.csv"
    validate_submission(small_run.submission, sample)
    submitted = pd.read_csv(small_run.submission)
    members = [
        pd.read_parquet(small_run.predictions(fold, 1, epoch)).set_index("SOPInstanceUID")
        for fold in (0, 1)
        for epoch in (1, 2)
    ]
    images = read_sample(sample)
    present = images[images.isin(members[0].index)]
    assert len(images) - len(present) == 1  # the truncated test file
    mean = sum(member.loc[present].to_numpy() for member in members) / 4
    submitted = submitted["Label"].to_numpy().reshape(-1, 6)[images.isin(present)]
    np.testing.assert_allclose(submitted, np.clip(mean, 1e-5, 1 - 1e-5), atol=1e-6)


def test_the_unreadable_test_slice_is_filled_from_its_neighbours(small_run):
    filled = pd.read_csv(small_run.filled)
    skipped = pd.read_csv(small_run.skipped)
    (image,) = filled["SOPInstanceUID"]
    reason = skipped.set_index("SOPInstanceUID").loc[image, "reason"]
    assert reason.startswith("pixel data is cut short")
    assert filled["filled_from"][0].startswith("neighbours ID_")


def test_the_scores_are_scikit_learns_of_the_table(small_run, small_data):
    oof = pd.read_parquet(small_run.oof)
    truth = read_labels(small_data / "stage_2_train.csv").loc[oof["SOPInstanceUID"]]
    np.testing.assert_array_equal(oof[list(LABELS)], truth)
    scores = json.loads(small_run.metrics.read_text())["scores"]
    weights = np.tile([1, 1, 1, 1, 1, 2], len(oof))
    for model in MODELS:
        values = np.clip(oof[name_columns(model)].to_numpy(), 1e-5, 1 - 1e-5)
        expected = log_loss(truth.to_numpy().ravel(), values.ravel(), sample_weight=weights)
        assert scores[model]["all"]["weighted"] == pytest.approx(expected, abs=1e-9)


def test_the_bag_lists_its_members_by_name_and_hash(small_run):
    import hashlib

    members = json.loads(small_run.metrics.read_text())["members"]
    assert len(members) == 4
    for member in members:
        content = (small_run.path / member["path"]).read_bytes()
        assert member["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_stale_file_does_not_join_the_bag(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    stale = pd.read_parquet(run.predictions(0, 1, 2))
    stale[list(LABELS)] = 0.999
    stale.to_parquet(run.lstm(0, 1) / "predictions7.parquet")
    before = run.submission.read_bytes()
    combine(run)
    assert run.submission.read_bytes() == before


def test_runs_are_blended_to_the_mean_of_their_submissions(small_run, tmp_path):
    other = copy_run(small_run, tmp_path / "other")
    table = pd.read_csv(other.submission)
    table["Label"] = 0.25
    table.to_csv(other.submission, index=False)
    oof = pd.read_parquet(other.oof).sample(frac=1, random_state=0)
    oof[name_columns("bag")] = 0.25
    oof.to_parquet(other.oof)
    metrics = blend_runs([small_run, other], tmp_path / "blend.csv")
    mine = pd.read_csv(small_run.submission)["Label"]
    blended = pd.read_csv(tmp_path / "blend.csv")["Label"]
    np.testing.assert_allclose(blended, (mine + 0.25) / 2, atol=1e-6)
    assert json.loads((tmp_path / "blend.members.json").read_text()) == metrics["members"]
    assert len({member["sha256"] for member in metrics["members"]}) == 2
    mine = pd.read_parquet(small_run.oof)
    mean = (mine[name_columns("bag")].to_numpy() + 0.25) / 2
    losses = [log_loss(mine[label], mean[:, number]) for number, label in enumerate(LABELS)]
    found = metrics["scores"]["bag"]["all"]
    assert found["weighted"] == pytest.approx(np.average(losses, weights=[1, 1, 1, 1, 1, 2]))
    # Runs that held out other slices have no score in common.
    oof[:-1].to_parquet(other.oof)
    assert blend_runs([small_run, other], tmp_path / "blend.csv")["scores"] == {}


def test_without_a_sample_it_is_said_why_there_is_no_submission(small_run, small_data, tmp_path):
    run, data = copy_run(small_run, tmp_path / "run"), tmp_path / "data"
    data.mkdir()
    for name in ("stage_2_train", "stage_2_train.csv", "stage_2_test"):
        (data / name).symlink_to(small_data / name)
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**config, "data": str(data)}))
    run.submission.unlink()
    metrics = combine(run)
    assert not run.submission.exists()
    assert format_scores(metrics).endswith("the data hold no stage_2_sample_submission.csv.")
