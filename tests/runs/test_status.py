"""What is done in a run and what is left."""

import pytest

from kit.pipeline import list_stages
from kit.runs.status import Output, describe_output

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


def test_embeddings_are_done_when_their_store_is_sealed(tmp_path):
    output = Output("fold 0 embeddings of epoch 1", tmp_path / "epoch1", "store.json")
    assert describe_output(output) == "to do"
    output.path.mkdir()
    (output.path / "embeddings.npy.part").touch()
    assert describe_output(output) == "begun"
    (output.path / "store.json").touch()
    assert describe_output(output) == "done"
