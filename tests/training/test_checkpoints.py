"""Checkpoints: what they restore, and what is refused."""

import pytest
import torch
from small_training import config, train
from training.test_step import make_image_stepper

from kit.training import amp
from kit.training.checkpoints import (
    Progress,
    TrainingError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)


def test_resuming_restores_scale_optimizer_and_position(tmp_path):
    chosen = config(opt_level="O1")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, chosen, stop_after=12, checkpoint_seconds=0)
    tensors, metadata = load_weights(tmp_path / "checkpoint.safetensors")
    assert metadata["progress"]["epoch"] == 2  # seven batches an epoch, eleven served
    assert metadata["progress"]["step"] == 4
    assert metadata["amp"]["scale"] == 2.0**16
    assert tensors["optimizer.0.step"].item() == 11


@pytest.mark.parametrize("opt_level", ["O0", "O2"])
def test_a_resumed_classifier_steps_as_one_that_went_on(opt_level, tmp_path):
    """Its weights lie channels last, and a fused optimizer takes its state in that layout alone."""
    stepper, batch = make_image_stepper(opt_level)
    for _ in range(3):
        stepper.take(batch)
    save_checkpoint(tmp_path / "checkpoint", stepper.model, stepper.optimizer, Progress())
    resumed, _ = make_image_stepper(opt_level)
    load_checkpoint(tmp_path / "checkpoint", resumed.model, resumed.optimizer)
    expected, found = (
        (each.take(batch), amp.list_masters(each.model, each.optimizer))[1]
        for each in (stepper, resumed)
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_place_that_no_training_reached_is_refused(tmp_path):
    stepper, _ = make_image_stepper("O0")
    for wrong in ({"at_once": -1}, {"at_once": 2.5}, {"step": -1}, {"epoch": 3}):
        path = tmp_path / "checkpoint.safetensors"
        save_checkpoint(path, stepper.model, stepper.optimizer, Progress(**wrong))
        with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: .* is not possible"):
            load_checkpoint(path, stepper.model, stepper.optimizer)


def test_a_checkpoint_that_is_cut_short_is_refused_by_name(tmp_path):
    train(tmp_path, config())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: not a weights file"):
        train(tmp_path, config())
