"""Classifier and sequence model as one network, trained end to end over whole series.

The loss is the sequence model's plus `slice_weight` times that of the classifier's own logits, and
its gradient reaches the classifier through the embeddings of a whole series. The 2nd place wished
for it; one such network scored better than the winners (0.04368 privately, arXiv 2205.07556).

What it is worth was tried on three folds of the demo's phantom, against a classifier of 10 epochs
and an LSTM on its embeddings, with log losses of .084, .100 and .077. Five joint epochs from there
gave .073, .083 and .078. With the classifier frozen, so that only the LSTM sees something new, the
embeddings of augmented slices, they gave .076, .084 and .080. `make study-ablation` begins with a
classifier of 6 epochs, on three seeds: four joint epochs lower the loss by 7 %, those of the LSTM
alone by 2 %, but the same epochs spent on the classifier, with a new LSTM, by 24 %.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kit import images
from kit.classifier import VALIDATION_SLICES, Classifier, load_classifier
from kit.lstm.model import SequenceModel, load_lstm, make_model, sequence_loss, split_output
from kit.lstm.series_images import SeriesImages
from kit.processes import restart_once
from kit.training.checkpoints import TrainingError, load_weights, save_tensors
from kit.training.config import ClassifierConfig, JointConfig, LSTMConfig
from kit.training.image_cache import open_cache
from kit.training.inference import move_batch, predict
from kit.training.loop import Task, fit, seed_random, weighted_loss

# By default so many pixels pass the classifier at once: those of 8 images of 480 a side. What the
# backward pass of ResNeXt-101 needs of these takes 570 MB each in half precision (counted), 4.6 GB
# together; weights, gradients and Adam's means of it and an LSTM of 2,048 units take 5.7 GB.
_PIXELS_AT_ONCE = 8 * 480**2

HALVES = ("classifier", "sequence")  # the parts of a joint model, and the files of their weights


class JointModel(nn.Module):
    """Images of whole series → logits of their slices, by sequence model and classifier.

    Slices pass the classifier `at_once` at a time. Where there are several parts, the backward pass
    computes their activations again instead of keeping them: memory does not grow with the length
    of a series. In training a part mixes the slices of all series: neighbours in one head are so
    alike that their mean and variance, by which batch normalization goes, are not those of images.
    """

    def __init__(self, classifier: Classifier, sequence: SequenceModel, config: JointConfig):
        super().__init__()
        self.classifier, self.sequence, self.config = classifier, sequence, config
        self.classifier.requires_grad_(not config.freeze_classifier)
        side = classifier.config.image_size
        self.at_once = config.slices_at_once or max(1, _PIXELS_AT_ONCE // side**2)

    def train(self, mode: bool = True) -> JointModel:
        """As of any module; what is frozen computes as in evaluation."""
        super().train(mode)
        if self.config.freeze_classifier:
            self.classifier.eval()
        elif self.config.normalization == "frozen":
            for layer in _list_normalization(self.classifier):
                layer.eval()
        return self

    def forward(
        self, image: torch.Tensor, parts: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Images (N, S, S, windows), `parts` (B, T, K) among them, mask (B, T) → three logits.

        Those of slices (B, T, 6) and of series (B, 6), None without, by the sequence model; those
        of slices by the classifier. Those of padded positions mean nothing.
        """
        mask = mask.bool().cpu()
        rows = mask.flatten().nonzero().flatten()
        if self.training:
            rows = rows[torch.randperm(len(rows))]
        places = rows.to(parts.device, non_blocking=True)
        found = self._embed(image, parts.flatten(0, 1)[places])
        padded = found.new_zeros(mask.numel(), found.shape[1]).index_copy(0, places, found)
        embeddings = padded.view(*mask.shape, -1)
        slices, series = split_output(self.sequence(embeddings, mask))
        head = self.classifier.head
        return slices, series, head(embeddings.to(head.weight.dtype))

    def _embed(self, image: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """Embed the slices that `parts` (n, K) describes: (n, E)."""
        pieces = parts.tensor_split(-(-len(parts) // self.at_once))
        learns = torch.is_grad_enabled() and not self.config.freeze_classifier
        with torch.set_grad_enabled(learns):
            if not learns or len(pieces) == 1:
                return torch.cat([self._embed_piece(image, piece) for piece in pieces])
            return torch.cat([self._embed_twice(image, piece) for piece in pieces])

    def _embed_piece(self, image: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        count = len(parts)
        if count == 1 and self.classifier.training:  # normalization takes no variance over one
            parts = parts.expand(2, -1)
        joined = images.join_neighbours({"image": image, "parts": parts})
        return self.classifier.embed(joined)[:count]

    def _embed_twice(self, image: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """As `_embed_piece`; the backward pass computes it again instead of keeping activations."""

        def make_contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), _keep_statistics(self.classifier)

        again: Any = {"use_reentrant": False, "context_fn": make_contexts}
        return cast(torch.Tensor, checkpoint(self._embed_piece, image, parts, **again))


def _list_normalization(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    kind = nn.modules.batchnorm._BatchNorm
    return [layer for layer in model.modules() if isinstance(layer, kind)]


@contextlib.contextmanager
def _keep_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch normalization leave its running statistics alone: they have seen these images."""
    layers: list[Any] = [layer for layer in _list_normalization(model) if layer.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.momentum, layer.num_batches_tracked = 0.0, None
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


@dataclass(frozen=True)
class JointStart:
    """What a joint training begins with: two files of weights, or what is made new instead."""

    config: JointConfig
    classifier: Path | ClassifierConfig
    sequence: Path | LSTMConfig

    def make_model(self, load: bool = True) -> JointModel:
        """Make the model; `load` the initial weights that a configuration names.

        A new sequence model does not standardize embeddings, which are not known before. Raises
        `TrainingError` naming a file of weights that cannot be used.
        """
        if isinstance(self.classifier, Path):
            classifier = load_classifier(self.classifier)
        else:
            classifier = Classifier(self.classifier, load=load)
        size = classifier.embedding_size
        if isinstance(self.sequence, Path):
            sequence = load_lstm(self.sequence)
        else:
            given = replace(self.sequence, embedding_size=size, standardize=False)
            sequence = make_model(given)
        if sequence.config.embedding_size != size:
            raise TrainingError(
                f"{self.sequence}: takes embeddings of {sequence.config.embedding_size} numbers; "
                f"the classifier's have {size}"
            )
        return JointModel(classifier, sequence, self.config)


def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    """The loss on a batch of `SeriesImages`, the mean over its slices."""
    joint, mask = cast(JointModel, model), batch["mask"]
    moved = move_batch(
        {name: batch[name] for name in ("image", "parts", "labels")},
        next(joint.parameters()).device,
    )
    slices, series, heads = model(moved["image"], moved["parts"], mask)
    output = slices if series is None else (slices, series)
    loss = sequence_loss(output, moved["labels"], mask)
    if joint.config.freeze_classifier:
        return loss
    return loss + joint.config.slice_weight * sequence_loss(heads, moved["labels"], mask)


@restart_once
def train_joint(
    table: pd.DataFrame,
    start: JointStart,
    directory: Path,
    device: torch.device,
    workers: int,
    validation: pd.DataFrame | None = None,
    description: str = "Joint model",
    deadline: float | None = None,
) -> list[dict]:
    """Train on the series of `table`, whose slices are labelled; return the history.

    Leaves `classifier.safetensors` and `sequence.safetensors` in `directory`, the halves after the
    last epoch, as `load_classifier` and `load_lstm` read them. With `validation`, a table of
    held-out slices, the history has the sequence model's loss over some of its series after each
    epoch. A second call continues. Raises as `fit` does.
    """
    config = start.config

    def validate(model: JointModel) -> dict:
        loss = measure_loss(model, cast(Any, validation), device, workers)
        return {} if loss is None else {"validation_loss": loss}

    def use(epoch: int) -> None:
        weights = directory / f"epoch{epoch}.safetensors"
        if epoch == config.epochs:
            _write_halves(weights, model, directory)
        weights.unlink()  # the checkpoint has them

    with seed_random(config.seed, device):
        model = start.make_model(load=not (directory / "checkpoint.safetensors").exists())
        seen = model.classifier.config
        cache = open_cache(pd.concat([table, validation]), seen, images.read_image)
        series = SeriesImages(table, seen, config.augment, config.seed, cache)
        make_batches = partial(series.make_batches, workers=workers)
        checked = validation is not None and len(validation) > 0
        task = Task(len(series), make_batches, compute_loss, validate if checked else None, use)
        model.to(device)
        return fit(model, config, task, directory, description=description, deadline=deadline)


def _write_halves(weights: Path, model: JointModel, directory: Path) -> None:
    """Write both parts of the weights of an epoch to files of their own, named by `HALVES`."""
    tensors, metadata = load_weights(weights)
    for name in HALVES:
        config = replace(getattr(model, name).config, epochs=model.config.epochs)
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        notes = {"config": asdict(config), "epoch": metadata["epoch"], "joint": metadata["config"]}
        save_tensors(directory / f"{name}.safetensors", own, notes)


def measure_loss(
    model: JointModel, table: pd.DataFrame, device: torch.device, workers: int
) -> float | None:
    """The sequence model's loss over series spread over `table`, `VALIDATION_SLICES` in all or so.

    None if none of their files gives an image.
    """
    config = model.config
    series = SeriesImages(table, model.classifier.config, False, 0, None)
    count = min(len(series), -(-VALIDATION_SLICES * len(series) // len(table)))
    chosen = np.linspace(0, len(series) - 1, count).astype(int)
    batches = series.list_rows(np.array_split(chosen, -(-count // config.batch_size)))
    loader = images.load_batches(series.slices, batches, workers)
    usable = (series.gather(batch) for batch in loader if batch["image"] is not None)

    def forward(batch: dict) -> torch.Tensor:
        return model(batch["image"], batch["parts"], batch["mask"])[0]

    outputs = predict(forward, usable, device, config.opt_level)
    found = [(logits.float()[b["mask"]], b["labels"][b["mask"]]) for b, logits in outputs]
    return float(weighted_loss(*map(torch.cat, zip(*found, strict=True)))) if found else None
