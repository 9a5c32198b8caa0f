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

from kit import KitError, progress
from kit.competition import LABEL_WEIGHTS
from kit.files import write_json
from kit.progress import log
from kit.training import amp, checkpoints, distributed
from kit.training.checkpoints import TrainingError
from kit.training.config import TrainingConfig, learning_rate_at
from kit.training.events import write_events
from kit.training.optimizer import list_parameters, make_optimizer, set_rate
from kit.training.step import Outcome, Stepper

_MOST_SKIPPED = 30  # in a row; the scale has then fallen by 2^30, which no overflow explains


class OutOfTime(KitError, RuntimeError):
    """The time budget is spent; everything is saved, and the same call continues from there."""

    exit_code = 3


@dataclass(frozen=True)
class Task:
    """What a model is trained on, and with which loss.

    `make_batches(epoch, indices)` yields a batch for each array of example numbers in `indices`;
    it has `labels`, and may be None where no example could be read. `compute_loss(model, batch)`
    returns the mean loss over the slices of a batch or of some of its examples, and moves it to the
    device. After each epoch `validate(model)` gives figures for the history; `use(epoch)` is called
    by the first process once its weights are written.
    """

    examples: int
    make_batches: Callable[[int, list[np.ndarray]], Iterable[dict | None]]
    compute_loss: Callable[[nn.Module, dict], torch.Tensor]
    validate: Callable[[Any], dict] | None = None
    use: Callable[[int], None] = lambda epoch: None


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The competition's loss: (N, 6) logits and labels → scalar, weights (1, 1, 1, 1, 1, 2) / 7.

    It equals (6·BCE_all + BCE_any) / 7, the loss of the reference implementation.
    """
    return measure_slices(logits, labels).mean()


def measure_slices(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The competition's loss of each slice: (…, 6) logits and labels → (…)."""
    weights = torch.tensor(LABEL_WEIGHTS) / sum(LABEL_WEIGHTS)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    )
    return (losses * weights.to(logits.device, non_blocking=True)).sum(dim=-1)


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
    Under O1 and O2 a step whose loss or gradients are not finite is skipped, and the loss scale
    halved. Raises `TrainingError` for the thirtieth such step in a row, at the other levels for a
    loss that is not finite, and for such weights; `OutOfTime` past `time.monotonic`'s `deadline`.
    """
    training = _Training(model, config, task, directory)
    state = training.state
    with seed_random(config.seed, training.device):
        while state.epoch <= config.epochs:
            name = f"{description} {state.epoch}/{config.epochs}"
            training.run_epoch(name, deadline, checkpoint_seconds)
            training.finish_epoch()
    if distributed.rank() == 0:
        write_json(directory / "history.json", state.history)  # 0.2.0 may have been killed before
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
        half = amp.choose_half(self.device, config.precision)
        amp.initialize(model, self.optimizer, config.opt_level, half)
        self.checkpoint = directory / "checkpoint.safetensors"
        self.state = checkpoints.load_checkpoint(self.checkpoint, model, self.optimizer)
        self._check_start()
        at_once = self.state.at_once or config.batch_size
        self.stepper = Stepper(model, self.optimizer, task.compute_loss, at_once, config.norm_limit)
        self.unread: Outcome | None = None  # the last step, which the device may still work on
        self.past = self.prepared = False  # whether the time of any process is over; `_prepare`
        self.counted = 0.0  # the time up to which `state.seconds` has been counted

    def _check_start(self) -> None:
        """Raise `TrainingError` unless all processes start from the same weights and step."""
        weights = sum(
            float(value.detach().double().abs().sum()) for value in list_parameters(self.optimizer)
        )
        if not distributed.all_agree([self.state.epoch, self.state.step, weights], self.device):
            raise TrainingError(
                f"{self.checkpoint}: the processes do not start from the same weights, as happens "
                "where they do not share a folder"
            )

    def run_epoch(
        self, description: str, deadline: float | None, checkpoint_seconds: float
    ) -> None:
        """Take the steps of one epoch, from `state.step` on."""
        state, config = self.state, self.config
        batches = shuffle_batches(self.task.examples, config.batch_size, config.seed, state.epoch)
        self.counted = time.monotonic()
        self.model.train()
        shares = distributed.share_batches(batches[state.step :])
        with progress.open_bar(description, len(batches), "batches", state.step) as bar:
            for batch in self._make_batches(shares):
                rate = learning_rate_at(config, state.epoch, state.step, len(batches))
                set_rate(self.optimizer, rate)
                where = f"epoch {state.epoch}, step {state.step + 1}"
                if batch is not None and not self.prepared:
                    self._prepare(batch, len(batches), where)
                seed = _step_seed(config.seed, state.epoch, state.step)
                outcome = self.stepper.take(batch, seed, where, _is_past(deadline))
                state.step += 1
                self._read_outcome()
                self.unread = outcome
                if state.step == len(batches):
                    self._read_outcome()
                if state.losses:
                    bar.set_postfix(loss=f"{state.loss_sum / state.losses:.4f}", refresh=False)
                bar.update()
                if state.step < len(batches):
                    self._save_in_time(description, deadline, checkpoint_seconds)
        self._count_seconds()

    def _make_batches(self, shares: list[np.ndarray]) -> Iterator[dict | None]:
        """This process's batches; None for an empty share and where no example could be read."""
        made = iter(
            self.task.make_batches(self.state.epoch, [each for each in shares if len(each)])
        )
        for share in shares:
            yield next(made) if len(share) else None
        next(made, None)  # it may have something to say in the end

    def _prepare(self, batch: dict, steps: int, where: str) -> None:
        """Find, before the first step, how much fits the card and which way it computes fastest."""
        state, self.prepared = self.state, True
        if not state.at_once:
            self.stepper.fit_memory(batch)
            fitting, share = self.stepper.at_once, len(batch["labels"])
            if fitting < share:
                log.info(f"kit: {fitting} of {share} examples go through the card at once")
        epochs = self.config.epochs - state.epoch + 1
        noted = self.stepper.choose_way(batch, steps * epochs - state.step, where)
        if noted and distributed.rank() == 0:
            write_json(self.directory / "speed.json", noted)

    def _read_outcome(self) -> None:
        """Note the loss of the step before, read late lest the device wait; raise at many skips."""
        outcome, self.unread = self.unread, None
        if outcome is None:
            return
        loss, own, skipped, past = outcome.read()
        self.past = past > 0
        self.state.at_once = self.stepper.at_once if self.prepared else self.state.at_once
        finite = math.isfinite(loss)
        if finite:
            self.state.losses += 1
            self.state.loss_sum += loss
        names = "of another process" if math.isfinite(own) else _shorten(outcome.names)
        fault = "gradients stay NaN or infinite" if finite else f"the loss is {loss}"
        fault = f"{outcome.where}: {fault}" + ("" if finite else f"; in the batch: {names}")
        if skipped >= _MOST_SKIPPED or not (finite or amp.find_scaling(self.optimizer).enabled):
            raise TrainingError(fault)
        if not finite and skipped == 1:
            log.warning(f"kit: {fault}; the step is skipped")

    def finish_epoch(self) -> None:
        """Check the weights, note the epoch in the history, keep its weights, move on."""
        state, directory = self.state, self.directory
        weights = amp.list_masters(self.model, self.optimizer)
        checkpoints.check_finite(weights, f"epoch {state.epoch}")
        scaling = amp.find_scaling(self.optimizer)
        entry = {
            "epoch": state.epoch,
            "loss": state.loss_sum / max(1, state.losses),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss_scale": scaling.scale,
            "skipped_steps": int(scaling.skipped),
            "seconds": round(state.seconds, 1),
        }
        if self.task.validate is not None:
            self.model.eval()
            entry.update(self.task.validate(self.model))
        state.history.append(entry)
        if distributed.rank() == 0:
            path = directory / f"epoch{state.epoch}.safetensors"
            checkpoints.save_weights(path, self.model, weights, epoch=state.epoch)
            write_events(directory / "events", entry)
            self.task.use(state.epoch)
        state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
        state.losses, state.loss_sum = 0, 0.0
        if distributed.rank() == 0:
            write_json(directory / "history.json", state.history)
            if state.epoch > self.config.epochs:  # whole: the last one may take the place of this
                self.checkpoint.unlink(missing_ok=True)
        self._save_checkpoint()

    def _save_in_time(self, description: str, deadline: float | None, interval: float) -> None:
        """Write a checkpoint if the last is `interval` seconds old; at the deadline also stop."""
        # All processes stop after the same step: one step after any has said that its time is over.
        out_of_time = self.past if distributed.is_joined() else _is_past(deadline)
        if out_of_time or time.monotonic() - self.counted > interval:
            self._count_seconds()
            self._save_checkpoint()
        if out_of_time:
            distributed.wait_for_all()  # torchrun ends all processes as soon as one has failed
            raise OutOfTime(f"{description}: stopped in time after step {self.state.step}")

    def _save_checkpoint(self) -> None:
        if distributed.rank() == 0:
            self._read_outcome()
            checkpoints.save_checkpoint(self.checkpoint, self.model, self.optimizer, self.state)

    def _count_seconds(self) -> None:
        before, self.counted = self.counted, time.monotonic()
        self.state.seconds += self.counted - before


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def shuffle_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The example numbers of each batch of an epoch; seed and epoch alone determine them."""
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def _step_seed(seed: int, epoch: int, step: int) -> int:
    sequence = np.random.SeedSequence([seed, epoch, step, distributed.rank()])
    return int(sequence.generate_state(1, np.uint64)[0])


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:8] or ["unknown"]) + (" …" if len(names) > 8 else "")
