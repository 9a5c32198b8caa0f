"""The bag of a run and of several runs; figures recomputed here from the files they leave."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import copy_run
from sklearn.metrics import log_loss

import kit
from kit.cli.tables import format_scores
from kit.competition import LABELS, read_labels
from kit.ensemble import MODELS, name_columns
from kit.runs.calibration import calibrate_run
from kit.runs.directory import Run, RunError
from kit.runs.export import export_runs
from kit.runs.scoring import blend_runs, combine, read_shares
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


def to_logits(probabilities):
    return np.log(probabilities / (1 - probabilities))


@pytest.fixture
def mixed(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "mixed")
    combine(run, mix=True)
    return run


def test_no_fold_is_mixed_in_shares_that_it_was_fitted_on(small_run, mixed):
    before, after = pd.read_parquet(small_run.oof), pd.read_parquet(mixed.oof)
    for label in LABELS:
        for fold in (0, 1):
            other, inside = before[before["fold"] != fold], before["fold"] == fold
            best = np.inf
            for share in np.arange(21) / 20:
                logits = (1 - share) * to_logits(other[f"classifier_{label}"])
                logits += share * to_logits(other[f"bag_{label}"])
                loss = log_loss(other[label], 1 / (1 + np.exp(-logits)), labels=[0, 1])
                if loss < best:
                    best, chosen = loss, share
            logits = (1 - chosen) * to_logits(before.loc[inside, f"classifier_{label}"])
            logits += chosen * to_logits(before.loc[inside, f"bag_{label}"])
            expected = 1 / (1 + np.exp(-logits))
            np.testing.assert_allclose(after.loc[inside, f"bag_{label}"], expected, atol=1e-5)
    scores = json.loads(mixed.metrics.read_text())["scores"]["bag"]["all"]["weighted"]
    weights = np.tile([1, 1, 1, 1, 1, 2], len(after))
    labels, values = (
        after[list(names)].to_numpy().ravel() for names in (LABELS, name_columns("bag"))
    )
    assert scores == pytest.approx(log_loss(labels, values, sample_weight=weights), abs=1e-6)


def test_the_submission_and_other_scans_are_mixed_alike(small_run, small_data, mixed, tmp_path):
    shares = np.array([*json.loads(mixed.shares.read_text()).values()])
    mean = pd.read_parquet(small_run.test).set_index("SOPInstanceUID")
    parts = (to_logits(mean[name_columns(model)]).to_numpy() for model in ("classifier", "bag"))
    classifier, bagged = parts
    expected = 1 / (1 + np.exp(-((1 - shares) * classifier + shares * bagged)))
    found = pd.read_parquet(mixed.test).set_index("SOPInstanceUID")
    np.testing.assert_allclose(found.loc[mean.index, name_columns("bag")], expected, atol=1e-5)
    assert mixed.submission.read_bytes() != small_run.submission.read_bytes()
    files = sorted((small_data / "stage_2_test").iterdir())[:6]
    table = kit.predict(files, mixed.path)
    rows = table.set_index("SOPInstanceUID")[list(LABELS)]
    # The scans' neighbours are not all there: only the classifiers' part must be as in the run.
    plain = kit.predict(files, small_run.path).set_index("SOPInstanceUID")
    logits = (1 - shares) * to_logits(plain[name_columns("classifier")].to_numpy())
    logits += shares * to_logits(plain.loc[rows.index, list(LABELS)].to_numpy())
    np.testing.assert_allclose(rows, 1 / (1 + np.exp(-logits)), atol=1e-5)
    export_runs([mixed], tmp_path / "export")
    np.testing.assert_allclose(read_shares(Run(tmp_path / "export")), shares)


def test_what_is_mixed_stays_so_until_it_is_said_otherwise(small_run, mixed):
    submission = mixed.submission.read_bytes()
    combine(mixed)
    assert mixed.submission.read_bytes() == submission
    combine(mixed, mix=False)
    assert mixed.submission.read_bytes() == small_run.submission.read_bytes()
    assert not mixed.shares.exists()


def test_without_a_second_fold_nothing_is_mixed(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    document = json.loads(run.config.read_text())
    document["recipe"]["train_folds"] = [0]
    run.config.write_text(json.dumps(document))
    with pytest.raises(RunError, match="two folds must be held out"):
        combine(run, mix=True)


@pytest.mark.parametrize("text", ['{"any": 2}', '{"any": "all"}', "[]"])
def test_shares_that_are_none_are_refused(mixed, text):
    noted = json.loads(text)
    if noted:
        noted = {**json.loads(mixed.shares.read_text()), **noted}
    mixed.shares.write_text(json.dumps(noted))
    with pytest.raises(RunError, match=r"shares\.json"):
        read_shares(mixed)


def test_a_calibration_of_what_was_not_mixed_yet_is_not_exported(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    calibrate_run(run)
    export_runs([run], tmp_path / "plain")
    combine(run, mix=True)
    with pytest.raises(RunError, match=r"made of other predictions.*kit calibrate"):
        export_runs([run], tmp_path / "export")
