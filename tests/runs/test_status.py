"""What is done in a run and what is left."""

import pytest

from kit import KitError
from kit.pipeline import STAGES as TABLE
from kit.pipeline import list_stages
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run
from kit.runs.status import Output, describe_output, is_trained, measure_disk, read_history

STAGES = 1 + 2 * 3 + 3  # the index; classifier, embeddings, LSTM of two folds; three files


def test_status_tells_what_is_done_and_what_is_left(small_run):
    states = dict(list_stages(small_run))
    assert states["index"] == states["fold 1 LSTM on epoch 1"] == states["report.html"] == "done"
    assert len(states) == STAGES


@pytest.mark.parametrize(
    ("present", "state"), [(None, "to do"), (0, "0 of 2 epochs"), (1, "1 of 2 epochs"), (2, "done")]
)
def test_a_training_is_done_when_every_epoch_has_its_weights(tmp_path, present, state):
    folder = tmp_path / "classifier"
    if present is not None:
        folder.mkdir()
        (folder / "checkpoint.safetensors").touch()
    for epoch in range(present or 0):
        (folder / f"epoch{epoch + 1}.safetensors").touch()
    assert describe_output(Output("fold 0 classifier", folder, epochs=2)) == state


def test_a_training_is_done_where_no_weights_are_kept(tmp_path):
    (tmp_path / "history.json").write_text('[{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 1}]')
    assert describe_output(Output("LSTM", tmp_path, epochs=2)) == "done"
    assert describe_output(Output("LSTM", tmp_path, epochs=3)) == "2 of 3 epochs"
    (tmp_path / "epoch3.safetensors").touch()  # the only one of three, the others were removed
    assert describe_output(Output("LSTM", tmp_path, epochs=3)) == "done"


def test_the_disk_is_told_by_what_takes_it(tmp_path):
    run = Run(tmp_path)
    for path, size in (
        (run.classifier(0) / "epoch1.safetensors", 7),
        (run.store(0, 1) / "embeddings.npy", 50),
        (run.store(1, 1) / "embeddings.npy", 50),
        (run.predictions(0, 1, 2), 9),
        (run.report, 3),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    sizes = {"classifier": 7, "embeddings": 100, "lstm": 9, "other": 3}
    assert measure_disk(run) == sizes


def test_embeddings_are_done_when_their_store_is_sealed(tmp_path):
    output = Output("fold 0 embeddings of epoch 1", tmp_path / "epoch1", "store.json")
    assert describe_output(output) == "to do"
    output.path.mkdir()
    (output.path / "embeddings.npy.part").touch()
    assert describe_output(output) == "begun"
    (output.path / "store.json").touch()
    assert describe_output(output) == "done"


def test_every_stage_has_its_outputs_in_the_order_of_the_work(tmp_path):
    run = Run(tmp_path / "run")
    begin_run(run, find_recipe("demo", {"train_folds": (0, 2)}), tmp_path)
    names = [name for name, state in list_stages(run) if state == "to do"]
    folds = [[f"fold {fold} classifier", f"fold {fold} embeddings of epoch 4",
              f"fold {fold} LSTM on epoch 4"] for fold in (0, 2)]  # fmt: skip
    ending = ["metrics.json", "submission.csv", "report.html"]
    assert names == ["index", *folds[0], *folds[1], *ending]
    assert list(TABLE) == ["index", "train-classifier", "embed", "train-lstm", "ensemble",
                            "report"]  # fmt: skip


def test_a_damaged_history_is_named(tmp_path):
    assert read_history(tmp_path).empty
    (tmp_path / "history.json").write_text('[{"epoch": 1, "loss": 0.5}]')
    assert is_trained(tmp_path, 1)
    assert not is_trained(tmp_path, 2)
    for text, reason in (
        ('[{"epoch": 1, ', "not JSON that can be read"),
        ('{"loss": 0.5}', "not the history of a training"),
        ('[{"epoch": 1}]', "not the history of a training"),
        ('[{"loss": "low"}]', "not the history of a training"),
        ("[1]", "not the history of a training"),
    ):
        (tmp_path / "history.json").write_text(text)
        with pytest.raises(KitError, match=rf"history\.json: {reason}"):
            is_trained(tmp_path, 1)
