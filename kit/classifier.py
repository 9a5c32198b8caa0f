"""The slice classifier: a timm model, its pooled embedding, six logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit import InputError, KitError, images
from kit.competition import LABELS, TRAINING_PRIOR
from kit.processes import restart_once
from kit.progress import log
from kit.training.backbone import load_backbone
from kit.training.checkpoints import (
    TrainingError,
    fill_model,
    limit_model,
    load_trained,
    load_weights,
)
from kit.training.config import ClassifierConfig
from kit.training.image_cache import open_cache
from kit.training.inference import move_batch, predict
from kit.training.loop import Task, fit, seed_random, weighted_loss
from kit.windowing import InputConfig

# Enough to see the loss rise, in a hundredth of the time of an epoch of the recipe `published`.
VALIDATION_SLICES = 2048

# Arguments of `timm.create_model` that make it read a file or ask a network.
_SOURCES = (
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_strict",
)  # fmt: skip


class Classifier(nn.Module):
    """Images → logits (B, 6); `embed` returns the pooled embedding (B, E) that the head takes."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: ClassifierConfig, load: bool = False):
        """Build the model; with `load` also fetch the initial weights that `config` names."""
        super().__init__()
        self.config = config
        self.layout = torch.channels_last
        self.backbone = make_backbone(config, load)
        # Some timm models change the width between the pooling and their own head.
        width = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        assert isinstance(width, int)
        self.embedding_size = width
        self.head = nn.Linear(self.embedding_size, len(LABELS))
        if config.prior_bias:
            prior = torch.tensor([TRAINING_PRIOR[label] for label in LABELS], dtype=torch.float32)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.bias.copy_(torch.logit(prior))
        white = 255 if config.scale == "uint8" else 1
        for name, values in (("mean", config.mean), ("std", config.std)):
            each = torch.tensor(values * len(config.neighbours)) * white
            self.register_buffer(name, each[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, S, S, channels) as `join_neighbours` returns them → logits (B, 6)."""
        return self.head(self.embed(images))

    def lay_out(self, layout: torch.memory_format) -> None:
        """Have the convolutions compute in a layout; channels last is the loader's."""
        self.layout = layout
        self.backbone.to(memory_format=layout)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, S, S, channels) → embedding (B, E)."""
        channels_first = images.permute(0, 3, 1, 2)
        normalized = (channels_first - self.mean) / self.std
        dtype = self.head.weight.dtype
        features = self.backbone(normalized.to(dtype, memory_format=self.layout))
        return features.mean(dim=(2, 3)) if self.config.embedding == "pre_logits" else features

    def embed_views(
        self, images: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """As `embed`, or another form of it, averaged over identity, horizontal flip, transpose."""
        views = (images, images.flip(2), images.transpose(1, 2).contiguous())
        return torch.stack([(embed or self.embed)(view).float() for view in views]).mean(dim=0)


def make_backbone(config: ClassifierConfig, load: bool) -> nn.Module:
    """Make the timm model without its own head; with `load`, with the weights `config` names.

    Raises `InputError` if timm has no such model, or for weights that do not fit it, and
    `TrainingError` if they cannot be downloaded.
    """
    import timm

    _refuse_sources(config)
    pretrained = load and config.weights == "pretrained"
    options: dict = {} if config.channels == 3 else {"in_chans": config.channels}
    if config.embedding == "pre_logits":
        options["global_pool"] = ""  # else timm pools before the convolution
    options |= config.architecture_options
    try:
        model = timm.create_model(
            config.architecture, pretrained=pretrained, num_classes=0, **options
        )
    except Exception as error:
        if not pretrained:
            raise InputError(
                f"timm makes no model of {config.architecture!r} with "
                f"{config.architecture_options}: {error}"
            ) from error
        raise TrainingError(
            f"the weights of {config.architecture} could not be downloaded "
            f"({type(error).__name__}): download them on a machine with a network connection and "
            "pass the file as --classifier-weights FILE.safetensors"
        ) from error
    if load and config.weights and not pretrained:
        path = Path(config.weights)
        if load_backbone(model, path):
            _compare_inputs(path, config)
    return model.to(memory_format=torch.channels_last)


def _refuse_sources(config: ClassifierConfig) -> None:
    """Refuse a configuration, perhaps a stranger's, that makes timm read or download a file."""
    named = [name for name in _SOURCES if name in config.architecture_options]
    if named or ":" in config.architecture:
        raise InputError(
            f"architecture {config.architecture!r} with {config.architecture_options}: weights are "
            "named by --classifier-weights alone"
        )


def _compare_inputs(path: Path, config: ClassifierConfig) -> None:
    """Log where weights were trained on other images than those that `config` shows them."""
    names = {entry.name for entry in fields(InputConfig)} - {"image_size", "repair"}
    try:
        seen = vars(ClassifierConfig(**load_weights(path)[1]["config"]))
        other = [name for name in sorted(names) if seen[name] != getattr(config, name)]
    except (KitError, KeyError, TypeError):
        other = ["normalization, which it does not state"]
    if other:
        log.warning("%s was trained on six labels with another %s", path, ", ".join(other))


def load_classifier(path: Path) -> Classifier:
    """Load a trained classifier from the weights and configuration in a `.safetensors` file.

    Raises `TrainingError` naming the file if it holds no such model.
    """
    weights, config = load_trained(path, ClassifierConfig)
    try:
        # The generator is for the initial weights, which are replaced.
        with torch.random.fork_rng(devices=[]), limit_model(weights):
            model = Classifier(config)
    except InputError as error:
        raise TrainingError(f"{path}: {error}") from error
    fill_model(model, weights, path)
    return model.to(memory_format=torch.channels_last).eval()


@restart_once
def train_classifier(
    table: pd.DataFrame,
    config: ClassifierConfig,
    directory: Path,
    device: torch.device,
    workers: int,
    validation: pd.DataFrame | None = None,
    description: str = "Classifier",
    deadline: float | None = None,
) -> list[dict]:
    """Train on the labelled slices of `table`; weights of every epoch go to `directory`.

    With `validation`, a table of held-out slices, the history also has the loss over some of them
    after each epoch, for watching it; all are scored after the embedding. Raises as `fit` does.
    """
    cache = open_cache(pd.concat([table, validation]), config, images.read_image)
    dataset = images.SliceDataset(table, config, config.augment, config.seed, cache)

    def make_batches(epoch: int, batches: list[np.ndarray]) -> Iterable[dict | None]:
        dataset.epoch = epoch
        return load_usable(dataset, batches, workers)

    def validate(model: Classifier) -> dict:
        loss = measure_loss(model, cast(Any, validation), device, workers)
        return {} if loss is None else {"validation_loss": loss}

    checked = validation is not None and len(validation) > 0
    task = Task(len(dataset), make_batches, compute_loss, validate if checked else None)
    with seed_random(config.seed, device):
        model = Classifier(config, load=not (directory / "checkpoint.safetensors").exists())
        model.to(device)
        if config.recompute_activations:
            checkpoint_activations(model)
        return fit(model, config, task, directory, description=description, deadline=deadline)


def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    """The loss on a batch of `load_batches`."""
    batch = move_batch(batch, next(model.parameters()).device)
    if len(batch["labels"]) == 1:  # twice: batch normalization takes no variance over one
        batch.update({name: torch.cat([batch[name]] * 2) for name in ("parts", "labels")})
    return weighted_loss(model(images.join_neighbours(batch)), batch["labels"])


def checkpoint_activations(model: Classifier) -> None:
    """Have the backward pass compute activations again. Raises `InputError` where timm cannot."""
    try:
        cast(Any, model.backbone).set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        name = model.config.architecture
        raise InputError(f"recompute_activations: timm does not offer it for {name}") from error


def load_usable(
    dataset: images.SliceDataset, batches: list[np.ndarray], workers: int
) -> Iterator[dict | None]:
    """Load batches; None for one of which no file gives an image.

    Raises `TrainingError` if all are None, unless so few are left after a restart that they may
    all be broken.
    """
    usable = sum(map(len, batches)) < min(32, len(dataset))
    for batch in images.load_batches(dataset, batches, workers):
        usable = usable or batch["image"] is not None
        yield batch if batch["image"] is not None else None
    if not usable:
        row, reason = batch["failed"][0]
        raise TrainingError(
            f"epoch {dataset.epoch}: no file gives an image; the first is {dataset.paths[row]}: "
            f"{reason}"
        )


def measure_loss(
    model: Classifier, table: pd.DataFrame, device: torch.device, workers: int
) -> float | None:
    """The loss over at most `VALIDATION_SLICES` labelled slices, evenly spread over `table`.

    None if none of their files gives an image.
    """
    config = model.config
    spread = np.linspace(0, len(table) - 1, min(len(table), VALIDATION_SLICES)).astype(int)
    dataset = images.SliceDataset(table, config)
    batch_size = images.choose_batch(config.image_size, device)
    batches = np.array_split(spread, -(-len(spread) // batch_size))
    loader = images.load_batches(dataset, batches, workers)
    usable = (batch for batch in loader if batch["image"] is not None)

    def forward(batch: dict) -> torch.Tensor:
        return model(images.join_neighbours(batch))

    outputs = predict(forward, usable, device, config.opt_level)
    found = [(logits.float(), batch["labels"]) for batch, logits in outputs]
    return float(weighted_loss(*map(torch.cat, zip(*found, strict=True)))) if found else None
