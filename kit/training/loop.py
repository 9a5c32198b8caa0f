"""The one training loop: epochs, AMP, distribution, progress, checkpoint and resume.

Nothing random outlives a step: batches, augmentation and dropout follow from the seed, the epoch
and the step alone. A run that was stopped therefore continues to the same weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kit import InputError, KitError, progress
from kit.competition import LABEL_WEIGHTS
from kit.files import write_json
from kit.training import amp, checkpoints, distributed
from kit.training.checkpoints import TrainingError
from kit.training.config import TrainingConfig, learning_rate_at
from kit.training.events import write_events
from kit.training.inference import move_batch

_MOST_OVERFLOWS = 30  # in a row; the scale has then fallen by 2^30, which no overflow explains


class OutOfTime(KitError, RuntimeError):
    """The time budget is spent; everything is saved, and the same call continues from there."""

    exit_code = 3


@dataclass(frozen=True)
class Task:
    """What a model is trained on, and with which loss.

    `make_batches(epoch, indices)` yields a batch for each array of example numbers in `indices`;
    a batch may be None where none of its examples could be read. `compute_loss(model, batch)`
    returns the scalar loss. `validate(model)` returns figures for the history after each epoch.
    """

    examples: int
    make_batches: Callable[[int, list[np.ndarray]], Iterable[dict | None]]
    compute_loss: Callable[[nn.Module, dict], torch.Tensor]
    validate: Callable[[Any], dict] | None = None


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The competition's loss: (N, 6) logits and labels → scalar, weights (1, 1, 1, 1, 1, 2) / 7.

    It equals (6·BCE_all + BCE_any) / 7, the loss of the reference implementation.
    """
    weights = torch.tensor(LABEL_WEIGHTS, device=logits.device) / sum(LABEL_WEIGHTS)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    )
    return (losses.mean(dim=0) * weights).sum()


def fit(
    model: nn.Module,
    config: TrainingConfig,
    task: Task,
    directory: Path,
    *,
    description: str = "Training",
    deadline: float | None = None,
    checkpoint_seconds: float = 600,
) -> list[dict]:
    """Train `model`, already on its device; return the history, one dict per epoch.

    Writes `epoch{n}.safetensors` after every epoch, `history.json`, and `checkpoint.safetensors`
    after every epoch and every `checkpoint_seconds`. A second call continues from the checkpoint.
    Raises `TrainingError` for a loss or weight that is not finite, and `OutOfTime` past `deadline`
    (of `time.monotonic`).
    """
    training = _Training(model, config, task, directory)
    state = training.state
    with seed_random(config.seed, training.device):
        while state.epoch <= config.epochs:
            training.run_epoch(
                f"{description} {state.epoch}/{config.epochs}", deadline, checkpoint_seconds
            )
            training.finish_epoch()
    if distributed.rank() == 0:
        # Written again, in case an earlier run was killed right after its last checkpoint.
        write_json(directory / "history.json", state.history)
    return state.history


@contextlib.contextmanager
def seed_random(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from `seed`; afterwards the caller's own sequence continues."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Training:
    """A model in training, at the epoch and step of `state`."""

    def __init__(self, model: nn.Module, config: TrainingConfig, task: Task, directory: Path):
        self.model, self.config, self.task, self.directory = model, config, task, directory
        self.device = next(model.parameters()).device
        directory.mkdir(parents=True, exist_ok=True)
        self.optimizer = make_optimizer(model, config)
        amp.initialize(model, self.optimizer, config.opt_level)
        self.checkpoint = directory / "checkpoint.safetensors"
        self.state = checkpoints.load_checkpoint(self.checkpoint, model, self.optimizer)
        self.wrapped = distributed.distribute_model(model)
        self.counted = 0.0  # the time up to which `state.seconds` has been counted

    def run_epoch(
        self, description: str, deadline: float | None, checkpoint_seconds: float
    ) -> None:
        """Take the steps of one epoch, from `state.step` on."""
        state, config, task = self.state, self.config, self.task
        batches = shuffle_batches(task.examples, config.batch_size, config.seed, state.epoch)
        self.counted = time.monotonic()
        self.model.train()
        shares = distributed.share_batches(batches[state.step :])
        bar = progress.open_bar(description, len(batches), "batches", state.step)
        with bar:
            for batch in task.make_batches(state.epoch, shares):
                rate = learning_rate_at(config, state.epoch, state.step, len(batches))
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                torch.manual_seed(_step_seed(config.seed, state.epoch, state.step))
                if distributed.all_have(batch is not None, self.device):
                    assert batch is not None
                    batch = move_batch(batch, self.device)
                    where = f"epoch {state.epoch}, step {state.step + 1}"
                    state.loss_sum += train_step(
                        self.wrapped, self.optimizer, batch, task.compute_loss, where
                    )
                state.step += 1
                bar.set_postfix(loss=f"{state.loss_sum / state.step:.4f}", refresh=False)
                bar.update()
                if state.step < len(batches):
                    self._save_in_time(description, deadline, checkpoint_seconds)
        self._count_seconds()

    def finish_epoch(self) -> None:
        """Check the weights, note the epoch in the history, keep its weights, move on."""
        state, directory = self.state, self.directory
        checkpoints.check_finite(self.model.state_dict(), f"epoch {state.epoch}")
        scaling = amp.find_scaling(self.optimizer)
        batches = -(-self.task.examples // self.config.batch_size)
        entry = {
            "epoch": state.epoch,
            "loss": state.loss_sum / max(1, batches),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss_scale": scaling.scale,
            "skipped_steps": scaling.skipped,
            "seconds": round(state.seconds, 1),
        }
        if self.task.validate is not None:
            self.model.eval()
            entry.update(self.task.validate(self.model))
        state.history.append(entry)
        if distributed.rank() == 0:
            path = directory / f"epoch{state.epoch}.safetensors"
            checkpoints.save_weights(path, self.model, epoch=state.epoch)
            write_events(directory / "events", entry)
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
        self._save_checkpoint()
        if distributed.rank() == 0:
            write_json(directory / "history.json", state.history)

    def _save_in_time(self, description: str, deadline: float | None, interval: float) -> None:
        """Write a checkpoint if the last is `interval` seconds old; at the deadline also stop."""
        out_of_time = distributed.is_past(deadline, self.device)
        if out_of_time or time.monotonic() - self.counted > interval:
            self._count_seconds()
            self._save_checkpoint()
        if out_of_time:
            distributed.wait_for_all()  # torchrun ends all processes as soon as one has failed
            raise OutOfTime(f"{description}: stopped in time after step {self.state.step}")

    def _save_checkpoint(self) -> None:
        if distributed.rank() == 0:
            checkpoints.save_checkpoint(self.checkpoint, self.model, self.optimizer, self.state)

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.counted
        self.counted = now


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    compute_loss: Callable[[nn.Module, dict], torch.Tensor],
    where: str,
) -> float:
    """Take one step; return the loss. Raises `TrainingError` naming `where` if it is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss = compute_loss(model, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"{where}: the loss is {value}; in the batch: {_name_batch(batch)}")
    with amp.scale_loss(loss, optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    if amp.find_scaling(optimizer).skipped_in_a_row >= _MOST_OVERFLOWS:
        raise TrainingError(f"{where}: gradients stay NaN or infinite")
    return value


def shuffle_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The example numbers of each batch of an epoch; seed and epoch alone determine them."""
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW, weight decay on everything but biases."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.optimizer not in kinds:
        raise InputError(f"optimizer {config.optimizer!r} is none of {', '.join(kinds)}")
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in named if "bias" not in name]},
        {"params": [value for name, value in named if "bias" in name], "weight_decay": 0.0},
    ]
    # Fused: one pass over memory. On a CPU Adam then takes a tenth of its time, a third of a step.
    return kinds[config.optimizer](
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _step_seed(seed: int, epoch: int, step: int) -> int:
    return int(
        np.random.SeedSequence([seed, epoch, step, distributed.rank()]).generate_state(
            1, np.uint64
        )[0]
    )


def _name_batch(batch: dict) -> str:
    names = batch.get("names") or ["unknown"]
    return ", ".join(map(str, names[:8])) + (" …" if len(names) > 8 else "")
