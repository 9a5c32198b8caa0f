"""The whole road on a small phantom; figures recomputed here from the files it leaves."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, copy_run
from dicom_files import write_slice

from kit import InputError, pipeline
from kit.classifier import load_classifier
from kit.cli.tables import format_stages
from kit.competition import LABELS, LabelError, to_submission
from kit.dicom.parsing import DicomError
from kit.embeddings import EmbeddingStore, make_series
from kit.files import write_json
from kit.images import read_image
from kit.lstm import load_lstm, predict_logits
from kit.pipeline import list_stages, run_recipe
from kit.recipes import find_recipe
from kit.runs import status
from kit.runs.directory import Run, RunError, list_members
from kit.runs.export import export_runs
from kit.runs.imported import import_embeddings
from kit.runs.scoring import combine
from kit.runs.status import measure_disk
from kit.runs.tables import read_slices
from kit.submission import validate_submission
from kit.training.checkpoints import TrainingError
from kit.training.loop import OutOfTime


def test_a_run_leaves_the_files_it_promises(small_run):
    found = {str(path.relative_to(small_run.path)) for path in small_run.path.rglob("*.*")}
    promised = {"config.json", "slices.parquet", "skipped.csv", "filled.csv", "oof.parquet"}
    promised |= {"test.parquet", "metrics.json", "submission.csv", "report.html", "timings.json"}
    for fold in (0, 1):
        promised |= {f"fold{fold}/classifier/epoch1.safetensors"}
        promised |= {f"fold{fold}/embeddings/epoch1/embeddings.npy"}
        promised |= {f"fold{fold}/lstm/epoch1/epoch{n}.safetensors" for n in (1, 2)}
        promised |= {f"fold{fold}/lstm/epoch1/predictions{n}.parquet" for n in (1, 2)}
    assert promised <= found
    assert not [name for name in found if name.endswith(".part")]


def test_out_of_fold_predictions_come_from_models_that_never_saw_the_patient(small_run):
    oof = pd.read_parquet(small_run.oof)
    slices = read_slices(small_run)
    training = slices[slices["split"] == "train"]
    assert len(oof) == len(training)
    assert (oof.groupby("PatientID")["fold"].nunique() == 1).all()
    for fold in (0, 1):
        held_out = set(oof.loc[oof["fold"] == fold, "SOPInstanceUID"])
        predicted = set(pd.read_parquet(small_run.predictions(fold, 1, 2))["SOPInstanceUID"])
        test = set(slices.loc[slices["split"] == "test", "SOPInstanceUID"])
        assert predicted == held_out | test


def test_the_same_seed_gives_the_same_bytes(small_run, small_data, tmp_path):
    run = Run(tmp_path / "again")
    run_recipe(small_data, find_recipe("demo", SMALL), run, workers=2)
    assert run.submission.read_bytes() == small_run.submission.read_bytes()


def test_a_stage_without_its_input_says_what_to_run_first(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    shutil.rmtree(run.store(0, 1))
    with pytest.raises(RunError, match=r"store.json is missing: run `kit embed .* --fold 0` first"):
        pipeline.fit_lstm(run, 0)
    with pytest.raises(RunError, match="there is no run here"):
        combine(Run(tmp_path / "nowhere"))


def test_an_lstm_on_other_embeddings_is_refused(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    path = run.store(0, 1) / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "0" * 64}))
    with pytest.raises(RunError, match="was trained on other embeddings"):
        pipeline.fit_lstm(run, 0)


def test_the_published_recipe_for_all_data_trains_one_model_without_scores(small_data, tmp_path):
    run = Run(tmp_path / "single")
    recipe = find_recipe("demo", {**SMALL, "train_folds": ()})
    scores = run_recipe(small_data, recipe, run, workers=1)
    assert len(scores) == 0
    assert not run.oof.exists()
    assert (run.path / "foldall" / "classifier" / "epoch1.safetensors").exists()
    validate_submission(run.submission, small_data / "stage_2_sample_submission.csv")


def test_a_vanished_file_stops_the_run_and_an_empty_one_gives_it_up(small_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    run, recipe = Run(tmp_path / "run"), find_recipe("demo", SMALL)
    slices = pipeline.index(data, recipe, run)
    gone = slices[slices["split"] == "test"].iloc[5]
    file = data / "stage_2_test" / f"{gone['SOPInstanceUID']}.dcm"
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"was there when it was indexed.*put it back"
    ) as said:
        run_recipe(data, recipe, run, workers=1)
    assert said.value.filename == str(file)
    assert not run.submission.exists()
    file.touch()  # given up: the slice is left out, and said to be
    run_recipe(data, recipe, run, workers=1)
    skipped = pd.read_csv(run.skipped).set_index("SOPInstanceUID")
    assert skipped.loc[gone["SOPInstanceUID"], "reason"] == "not a DICOM file"
    assert gone["SOPInstanceUID"] in set(pd.read_csv(run.filled)["SOPInstanceUID"])
    validate_submission(run.submission, data / "stage_2_sample_submission.csv")


def test_a_series_answer_does_not_depend_on_its_batch(small_run):
    slices = read_slices(small_run)
    store = EmbeddingStore(small_run.store(0, 1))
    model = load_lstm(small_run.lstm(0, 1) / "epoch2.safetensors")
    series = make_series(store, slices)
    one, many = (
        predict_logits(model, series, torch.device("cpu"), slices=count) for count in (1, 4096)
    )
    assert np.abs(1 / (1 + np.exp(-one)) - 1 / (1 + np.exp(-many))).max() < 1e-5


def test_an_lstm_can_be_trained_on_published_embeddings_alone(small_data, tmp_path):
    changes = {**SMALL, "train_folds": (0,), "bag_lstm_epochs": 1, "lstm.epochs": 1}
    run, recipe = Run(tmp_path / "run"), find_recipe("demo", changes)
    slices = pipeline.index(small_data, recipe, run)
    values = np.random.default_rng(0).normal(size=(len(slices), 32)).astype(np.float32)
    half = len(slices) // 2
    files = []
    for name, part in (("trn", slice(0, half)), ("val", slice(half, None))):
        np.savez(tmp_path / f"emb_{name}.npz", values[part])
        slices["SOPInstanceUID"][part].to_frame().to_csv(tmp_path / f"ids_{name}.csv")
        files.append((tmp_path / f"emb_{name}.npz", tmp_path / f"ids_{name}.csv"))
    import_embeddings(run, 0, files)
    store = EmbeddingStore(run.store(0, 1))
    np.testing.assert_array_equal(store.embeddings, values.astype(np.float16))
    pipeline.fit_lstm(run, 0)
    metrics = combine(run)
    assert set(metrics["scores"]) == {"lstm", "bag"}
    # To go on trains no classifier and keeps the embeddings; the report does without.
    scores = run_recipe(small_data, recipe, run, workers=1).set_index(["model", "fold"])
    assert scores.loc[("bag", "all"), "weighted"] == metrics["scores"]["bag"]["all"]["weighted"]
    assert not run.classifier(0).exists()
    assert "imported" in EmbeddingStore(run.store(0, 1)).provenance
    assert run.report.exists()
    validate_submission(run.submission, small_data / "stage_2_sample_submission.csv")
    with pytest.raises(RunError, match=r"slices of .* without an embedding"):
        import_embeddings(run, 0, files[:1])
    with pytest.raises(RunError, match="has no fold 7: 0"):
        import_embeddings(run, 7, files)


def test_a_run_without_a_test_part_has_scores_and_no_submission(small_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("stage_2_train", "stage_2_train.csv", "stage_2_sample_submission.csv"):
        (data / name).symlink_to(small_data / name)
    run = Run(tmp_path / "run")
    scores = run_recipe(data, find_recipe("demo", {**SMALL, "lstm.epochs": 2}), run, workers=1)
    assert scores.set_index(["model", "fold"]).loc[("bag", "all"), "weighted"] > 0
    assert not run.submission.exists()
    assert {state for _, state in list_stages(run)} == {"done"}


def test_stages_return_tables(small_run, small_data):
    """What a notebook shows: the stages of a finished run do nothing and say what is there."""
    history = pipeline.fit_classifier(small_run, 0)
    assert history["epoch"].tolist() == [1]
    assert history["loss"].item() > 0
    (store,) = pipeline.embed(small_run, 1).to_dict("records")
    slices = read_slices(small_run)
    assert (store["classifier_epoch"], store["slices"]) == (1, len(slices))
    assert EmbeddingStore(Path(store["path"])).ids.tolist() == slices["SOPInstanceUID"].tolist()
    history = pipeline.fit_lstm(small_run, 0)
    assert history[["classifier_epoch", "epoch"]].to_numpy().tolist() == [[1, 1], [1, 2]]
    scores = pipeline.score(small_run)
    assert scores["model"].unique().tolist() == ["classifier", "rolling_mean", "lstm", "bag"]
    assert scores["fold"].unique().tolist() == ["all", "0", "1"]


def test_predictions_of_an_earlier_training_do_not_outlive_it(small_run, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    stale = pd.read_parquet(run.predictions(0, 1, 2))
    stale[list(LABELS)] = 0.999
    stale.to_parquet(run.predictions(0, 1, 2))
    for path in run.lstm(0, 1).glob("*.safetensors"):
        path.unlink()
    (run.lstm(0, 1) / "history.json").unlink()
    pipeline.fit_lstm(run, 0)
    found = pd.read_parquet(run.predictions(0, 1, 2))
    pd.testing.assert_frame_equal(found, pd.read_parquet(small_run.predictions(0, 1, 2)))


def test_weights_that_no_one_needs_are_removed_and_the_bag_is_the_same(small_data, tmp_path):
    """Every averaged epoch predicts as soon as it is trained; the last alone keep their weights."""
    changes = {
        **{"folds": 2, "train_folds": (0,), "lstm.hidden_size": 16, "lstm.epochs": 3},
        **{"classifier.epochs": 3, "bag_classifier_epochs": 2, "bag_lstm_epochs": 2},
    }
    all_kept, run = Run(tmp_path / "all"), Run(tmp_path / "run")
    recipe = find_recipe("demo", {**changes, "kept_epochs": 1})
    pipeline.run_recipe(small_data, find_recipe("demo", changes), all_kept, workers=1)
    pipeline.index(small_data, recipe, run, workers=1)
    pipeline.fit_classifier(run, 0, workers=1)
    assert list_weights(run) == ["classifier/epoch2", "classifier/epoch3"]  # the second is to embed
    for _ in range(2):
        pipeline.embed(run, 0, workers=1)
    stops = 0
    while stops < 100:
        try:
            pipeline.fit_lstm(run, 0, deadline=time.monotonic())
            break
        except OutOfTime:
            stops += 1
    assert stops > 2
    assert [(run.store(0, n) / "embeddings.npy").exists() for n in (2, 3)] == [False, True]
    assert pipeline.embed(run, 0, workers=1)["classifier_epoch"].tolist() == [3]
    pipeline.run_recipe(small_data, recipe, run, workers=1)
    kept = ["classifier/epoch3", "lstm/epoch3/epoch3"]
    assert list_weights(run) == kept
    lstms = [f"lstm/epoch{each}/epoch{epoch}" for each in (2, 3) for epoch in (2, 3)]
    assert list_weights(all_kept) == ["classifier/epoch2", "classifier/epoch3", *lstms]
    for name in ("submission", "oof"):
        assert getattr(run, name).read_bytes() == getattr(all_kept, name).read_bytes()
    states = dict(list_stages(run))
    assert states.pop("fold 0 embeddings of epoch 2") == "done and removed"
    assert set(states.values()) == {"done"}
    assert format_stages(run, list_stages(run)).endswith("\ncomplete")
    (run.lstm(0, 2) / "history.json").unlink()
    with pytest.raises(RunError, match="its embeddings were removed when their LSTM had predicted"):
        pipeline.fit_lstm(run, 0)
    write_json(run.lstm(0, 2) / "history.json", status.read_epochs(all_kept.lstm(0, 2)))
    members = list_members(run, recipe)
    assert [*members, *members.values()] == [
        run.classifier(0) / "epoch3.safetensors",
        [run.lstm(0, 3) / "epoch3.safetensors"],
    ]
    assert export_runs([run], tmp_path / "weights")["folds"] == [0]
    assert measure_disk(run)["lstm"] < measure_disk(all_kept)["lstm"]


def list_weights(run):
    folder = run.path / "fold0"
    found = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.safetensors")]
    return sorted(map(str, found))


def write_competition(folder, training=3, test=1, label="1", empty=False):
    """A competition of patients with one slice each."""
    for part, count in (("train", training), ("test", test)):
        for number in range(count):
            uid = f"1.{len(part)}.{number}"
            names = {"SOPInstanceUID": uid, "PatientID": f"{part}{number}"}
            path = folder / f"stage_2_{part}" / f"{uid}.dcm"
            write_slice(path, SeriesInstanceUID=f"{uid}.1", **names)
            if empty:
                path.write_bytes(b"")
    for name, part, count in (("train", 5, training), ("sample_submission", 4, test)):
        wide = pd.DataFrame(0, [f"{label}.{part}.{n}" for n in range(count)], list(LABELS))
        to_submission(wide).to_csv(folder / f"stage_2_{name}.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"training": 0}, r"1 slice in the test part, 0 files skipped$"),
        ({"label": "9"}, r"1 slice in the test part, 6 files skipped; no labels in "),
        (
            {"empty": True},
            r"0 slices in the test part, 7 files skipped; not a DICOM file: 4; in ",
        ),
    ],
)
def test_no_slice_to_train_on_is_told_at_the_index_with_the_counts(tmp_path, how, reason):
    data, run = write_competition(tmp_path / "data", **how), Run(tmp_path / "run")
    with pytest.raises(InputError, match=rf"^{data}: no training slice: {reason}"):
        pipeline.index(data, find_recipe("demo", {"folds": 2, "train_folds": (0,)}), run)
    assert not run.slices.exists()
    # The same command goes on once the data are there.
    shutil.rmtree(data)
    write_competition(data)
    assert len(pipeline.index(data, find_recipe("demo", {"folds": 2, "train_folds": (0,)}), run))


def test_a_fold_that_holds_out_everybody_is_told_at_the_index(tmp_path):
    data = write_competition(tmp_path / "data")
    table = pd.DataFrame({"PatientID": [f"train{number}" for number in range(3)], "fold": 1})
    table.to_csv(tmp_path / "folds.csv", index=False)
    recipe = find_recipe("demo", {"folds": 2, "train_folds": (0, 1)})
    with pytest.raises(InputError, match="fold 1 holds out all of the 3 training slices"):
        pipeline.index(data, recipe, Run(tmp_path / "run"), fold_table=tmp_path / "folds.csv")


@pytest.mark.parametrize("folds", [1, 5])
def test_no_split_is_needed_where_no_fold_is_trained(tmp_path, folds):
    data = write_competition(tmp_path / "data")
    recipe = find_recipe("demo", {"folds": folds, "train_folds": ()})
    slices = pipeline.index(data, recipe, Run(tmp_path / "run"))
    assert slices["fold"].tolist() == [-1, 0, 0, 0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("1.4.0_epidural", '"1.4""0_epidural"', "line 2 .*names no image as a CSV can"),
        ("1.4.0_any", '"1.4\n0_any"', "line 7 .*names no image as a CSV can"),
        ("1.4.0_any,0\n", "", "row 1.4.0_any is missing"),
        ("ID,Label", "ID,epidural,any", "header must be ID,Label"),
        ("1.4.0_any,0", "1.4.0_any,maybe", "line 7 .*no number"),
    ],
)
def test_a_sample_that_cannot_be_used_is_refused_at_the_index(tmp_path, old, new, reason):
    data = write_competition(tmp_path / "data")
    sample = data / "stage_2_sample_submission.csv"
    sample.write_text(sample.read_text().replace(old, new))
    with pytest.raises(LabelError, match=f"^{sample}: .*{reason}"):
        pipeline.index(data, find_recipe("demo", {"train_folds": ()}), Run(tmp_path / "run"))


def test_a_series_whose_logits_are_not_finite_is_named(small_run):
    model = load_lstm(small_run.lstm(0, 1) / "epoch2.safetensors")
    series = make_series(EmbeddingStore(small_run.store(0, 1)), read_slices(small_run))
    series.embeddings = np.array(series.embeddings)
    series.embeddings[series.rows[series.positions[3][2]]] = np.inf
    with pytest.raises(TrainingError, match=f"series {series.names[3]}: its logits are not finite"):
        predict_logits(model, series, torch.device("cpu"))


# `modern` with a ConvNeXt of drawn weights and few channels, on small images; the rest is its own.
SMALL_MODERN = {
    **{name: value for name, value in SMALL.items() if name != "train_folds"},
    "bag_lstm_epochs": 1,
    "lstm.epochs": 1,
    "classifier.weights": "",
    "classifier.architecture_options": {
        "depths": [1, 1, 2, 1],
        "dims": [16, 16, 32, 24],
        "ls_init_value": 1.0,
        "drop_path_rate": 0.2,
    },
    "classifier.image_size": 64,
    "classifier.opt_level": "O0",
    "classifier.recompute_activations": True,
}


def test_the_recipe_with_neighbours_runs_and_embeds_zeros_beyond_the_ends(small_data, tmp_path):
    run, recipe = Run(tmp_path / "run"), find_recipe("modern", SMALL_MODERN)
    scores = run_recipe(small_data, recipe, run, workers=1)
    assert np.isfinite(scores[list(LABELS)].to_numpy()).all()
    validate_submission(run.submission, small_data / "stage_2_sample_submission.csv")
    store, slices = EmbeddingStore(run.store(0, 1)), read_slices(run)
    assert store.embeddings.shape == (len(slices), 24)
    model = load_classifier(run.classifier(0) / "epoch1.safetensors")
    series = find_readable(slices, model.config)
    for place in (0, 1, len(series) - 1):
        expected = embed_by_hand(model, series, place)
        found = store.embeddings[series.index[place]]
        np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2e-3)
    # What lies beyond the end is seen: with the last slice repeated there, another embedding.
    repeated = embed_by_hand(model, series, 0, beyond=0)
    assert np.abs(repeated - store.embeddings[series.index[0]]).max() > 0.02


def find_readable(slices: pd.DataFrame, config) -> pd.DataFrame:
    """The rows of a series of which every slice gives an image."""
    for _, rows in slices.groupby("series", sort=False):
        try:
            for path in rows["path"]:
                read_image(path, config)
        except DicomError:
            continue
        return rows
    raise AssertionError("no series is whole")


def embed_by_hand(model, series: pd.DataFrame, place: int, beyond: int | None = None) -> np.ndarray:
    """The embedding of a slice from its image and those before and after; zeros beyond the ends."""
    seen = []
    for near in (place - 1, place, place + 1):
        near = near if 0 <= near < len(series) else beyond
        image = np.zeros((64, 64, 3)) if near is None else read_image(
            series["path"].iloc[near], model.config
        )  # fmt: skip
        seen.append((image / 255 - np.array(model.config.mean)) / np.array(model.config.std))
    channels = np.concatenate(seen, axis=2).transpose(2, 0, 1)[None]
    with torch.inference_mode():
        return model.backbone(torch.from_numpy(channels).float())[0].numpy()
