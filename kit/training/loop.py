"""The one training loop: epochs, AMP, distribution, progress, checkpoint and resume; prediction.

Nothing random outlives a step: batches, augmentation and dropout follow from the seed, the epoch
and the step alone. So a run that was stopped goes on to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kit import KitError, progress
from kit.competition import LABEL_WEIGHTS
from kit.cpu import keep_memory
from kit.files import write_json
from kit.training import amp
from kit.training.checkpoints import (
    Progress,
    TrainingError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from kit.training.config import TrainingConfig
from kit.training.distributed import (
    all_have,
    distribute_model,
    is_past,
    rank,
    share_batches,
    wait_for_all,
)
from kit.training.events import write_events


class OutOfTime(KitError, RuntimeError):
    """The time budget is spent; everything is saved, and the same call continues from there."""

    exit_code = 3


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The competition's loss: (N, 6) logits and labels → scalar, weights (1, 1, 1, 1, 1, 2) / 7.

    The same as the published (6·BCE_all + BCE_any) / 7.
    """
    weights = torch.tensor(LABEL_WEIGHTS, device=logits.device) / sum(LABEL_WEIGHTS)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    )
    return (losses.mean(dim=0) * weights).sum()


def fit(
    model: nn.Module,
    config: TrainingConfig,
    make_batches: Callable[[int, list[np.ndarray]], Iterable[dict]],
    compute_loss: Callable[[nn.Module, dict], torch.Tensor],
    examples: int,
    directory: Path,
    *,
    description: str = "Training",
    validate: Callable[[nn.Module], dict] | None = None,
    deadline: float | None = None,
    checkpoint_seconds: float = 600,
) -> list[dict]:
    """Train `model`, already on its device; return the history, a dict an epoch.

    `make_batches(epoch, indices)` yields a batch for each array of example numbers in `indices`;
    a batch may be None where none of its examples could be read. `compute_loss(model, batch)` gives
    the scalar loss. `validate(model)` adds its figures to the history after each epoch.

    Writes `epoch{n}.safetensors` after every epoch, `history.json`, and `checkpoint.safetensors`
    after every epoch and every `checkpoint_seconds`. A second call goes on from the checkpoint.
    Raises `TrainingError` for a loss or weight that is not finite, and `OutOfTime` past `deadline`
    (of `time.monotonic`).
    """
    if next(model.parameters()).device.type == "cpu":
        keep_memory()
    directory.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(model, config)
    model, optimizer = amp.initialize(model, optimizer, config.opt_level)
    state = load_checkpoint(directory / "checkpoint.safetensors", model, optimizer)
    wrapped = distribute_model(model)
    while state.epoch <= config.epochs:
        batches = shuffle_batches(examples, config.batch_size, config.seed, state.epoch)
        _train_epoch(
            wrapped,
            model,
            optimizer,
            config,
            batches,
            state,
            make_batches,
            compute_loss,
            f"{description} {state.epoch}/{config.epochs}",
            directory,
            deadline,
            checkpoint_seconds,
        )
        _finish_epoch(model, optimizer, config, state, len(batches), directory, validate)
    if rank() == 0:  # written again: the last time may have been cut off after the checkpoint
        write_json(directory / "history.json", state.history)
    return state.history


def shuffle_batches(examples: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The example numbers of each batch of an epoch; they follow from the seed and epoch alone."""
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return [order[start : start + batch_size] for start in range(0, examples, batch_size)]


def learning_rate_at(config: TrainingConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps` in epoch `epoch` (from 1)."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "exponential":
        return config.learning_rate * config.learning_rate_decay ** (epoch - 1)
    if config.schedule == "one-cycle":  # Smith & Topin, 2017, arXiv:1708.07120: warm up, anneal
        done = ((epoch - 1) * steps + step) / max(1, config.epochs * steps - 1)
        if done < 0.3:
            return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * done / 0.3)) / 2)
        return config.learning_rate * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    raise ValueError(f"schedule {config.schedule!r} is none of constant, exponential, one-cycle")


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW, weight decay on everything but biases."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.optimizer not in kinds:
        raise ValueError(f"optimizer {config.optimizer!r} is none of {', '.join(kinds)}")
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in named if "bias" not in name]},
        {"params": [value for name, value in named if "bias" in name], "weight_decay": 0.0},
    ]
    # Fused: one pass over memory, on a CPU a tenth of the time, which is a third of a step.
    return kinds[config.optimizer](
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def predict(
    forward: Callable[[dict], torch.Tensor],
    batches: Iterable[dict],
    device: torch.device,
    opt_level: str = "O1",
) -> Iterator[tuple[dict, torch.Tensor]]:
    """Yield (batch, forward(batch)) for every batch, moved to the device and in its precision."""
    if device.type == "cpu":
        keep_memory()
    for batch in batches:
        with torch.inference_mode(), amp.autocast(device, opt_level):
            output = forward(move_batch(batch, device))
        yield batch, output


def move_batch(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _train_epoch(
    wrapped,
    model,
    optimizer,
    config,
    batches,
    state,
    make_batches,
    compute_loss,
    description,
    directory,
    deadline,
    checkpoint_seconds,
):
    """The steps of one epoch from `state.step` on."""
    device = next(model.parameters()).device
    started = saved = time.monotonic()
    model.train()
    skipped_in_a_row = 0
    with progress.open_bar(description, len(batches), "batches", state.step) as bar:
        for batch in make_batches(state.epoch, share_batches(batches[state.step :])):
            rate = learning_rate_at(config, state.epoch, state.step, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_step_seed(config.seed, state.epoch, state.step))
            if all_have(batch is not None, device):
                skipped = optimizer.amp.skipped
                state.loss_sum += _step(
                    wrapped,
                    optimizer,
                    move_batch(batch, device),
                    compute_loss,
                    f"epoch {state.epoch}, step {state.step + 1}",
                )
                skipped_in_a_row = skipped_in_a_row + 1 if optimizer.amp.skipped > skipped else 0
            if skipped_in_a_row >= 30:  # the scale has then fallen by 2^30: no overflow explains it
                raise TrainingError(
                    f"epoch {state.epoch}, step {state.step + 1}: gradients stay NaN or infinite"
                )
            state.step += 1
            bar.set_postfix(loss=f"{state.loss_sum / state.step:.4f}", refresh=False)
            bar.update()
            now = time.monotonic()
            out_of_time = is_past(deadline, device)
            if (out_of_time or now - saved > checkpoint_seconds) and state.step < len(batches):
                state.seconds += now - started
                started = saved = now
                _checkpoint(directory, model, optimizer, state)
                if out_of_time:
                    wait_for_all()  # the end of one process ends the others
                    raise OutOfTime(f"{description}: stopped in time after step {state.step}")
    state.seconds += time.monotonic() - started


def _step(model, optimizer, batch, compute_loss, where: str) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = compute_loss(model, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"{where}: the loss is {value}; in the batch: {_name_batch(batch)}")
    with amp.scale_loss(loss, optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    return value


def _finish_epoch(model, optimizer, config, state, steps, directory, validate):
    """Check the weights, note the epoch in the history, keep its weights, move on."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"epoch {state.epoch}: the weights {name} are not finite")
    entry = {
        "epoch": state.epoch,
        "loss": state.loss_sum / max(1, steps),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "loss_scale": optimizer.amp.scale,
        "skipped_steps": optimizer.amp.skipped,
        "seconds": round(state.seconds, 1),
    }
    if validate is not None:
        model.eval()
        entry.update(validate(model))
    state.history.append(entry)
    if rank() == 0:
        save_weights(directory / f"epoch{state.epoch}.safetensors", model, epoch=state.epoch)
    state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
    _checkpoint(directory, model, optimizer, state)
    if rank() == 0:
        write_json(directory / "history.json", state.history)
        write_events(directory / "events", entry)


def _checkpoint(directory: Path, model, optimizer, state: Progress) -> None:
    if rank() == 0:
        save_checkpoint(directory / "checkpoint.safetensors", model, optimizer, state)


def _step_seed(seed: int, epoch: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, rank()]).generate_state(1, np.uint64)[0])


def _name_batch(batch: dict) -> str:
    names = batch.get("names") or ["unknown"]
    return ", ".join(map(str, names[:8])) + (" …" if len(names) > 8 else "")
