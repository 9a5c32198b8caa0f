"""Checkpoints: what they restore, and what is refused."""

import pytest
from small_training import config, train

from kit.training.checkpoints import TrainingError, load_weights


def test_resuming_restores_scale_optimizer_and_position(tmp_path):
    chosen = config(opt_level="O1")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, chosen, stop_after=12, checkpoint_seconds=0)
    tensors, metadata = load_weights(tmp_path / "checkpoint.safetensors")
    assert metadata["progress"]["epoch"] == 2  # seven batches an epoch, eleven served
    assert metadata["progress"]["step"] == 4
    assert metadata["amp"]["scale"] == 2.0**16
    assert tensors["optimizer.0.step"].item() == 11


def test_a_checkpoint_that_is_cut_short_is_refused_by_name(tmp_path):
    train(tmp_path, config())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: not a weights file"):
        train(tmp_path, config())
