"""Images → embeddings: the classifier over all slices, into a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from kit import InputError, images, progress
from kit.classifier import Classifier, load_classifier
from kit.embeddings.store import EmbeddingStore
from kit.embeddings.writer import StoreWriter, open_store
from kit.files import hash_file, read_json
from kit.processes import restart_once
from kit.training import amp
from kit.training.distributed import all_have, rank
from kit.training.inference import fuse_normalization, predict
from kit.training.loop import OutOfTime, seed_random
from kit.training.tuning import Tuning, choose_tuning, search_algorithms, time_batches


@restart_once
def extract_embeddings(
    table: pd.DataFrame,
    weights: Path | Embedder,
    directory: Path,
    device: torch.device,
    workers: int,
    batch_size: int | None = None,
    description: str = "Embeddings",
    deadline: float | None = None,
) -> EmbeddingStore:
    """Embed every slice of `table` with the classifier in `weights`; a second call continues.

    An `Embedder` stays loaded for the next call. Each file is decoded once; flip and transpose are
    made on the device. Under `torchrun` each process fills its part of the one store. Raises
    `InputError` if no file gives an image, `TrainingError` for an embedding not finite in float16,
    `OutOfTime` past `time.monotonic`'s `deadline`.
    """
    embedder = weights if isinstance(weights, Embedder) else Embedder(weights, device, batch_size)
    if _is_finished(directory, embedder.provenance, device):
        return EmbeddingStore(directory)
    model = embedder.model
    writer = open_store(directory, len(table), model.embedding_size, {**embedder.provenance})
    dataset = images.SliceDataset(table, model.config)
    batches = writer.list_batches(images.choose_reading(model.config, embedder.at_once))
    before, todo = writer.finished, sum(map(len, batches))
    bar = progress.open_bar(description, before + todo, "slices", before)
    # The random state stays the caller's: torch's loader draws a number, and trials draw noise.
    with seed_random(0, device), bar:
        if batches:
            writer.provenance |= embedder.choose_way(len(batches))
        loader = _stop_in_time(images.load_batches(dataset, batches, workers), deadline)
        _fill_store(writer, embedder, loader, bar)
    # A process that has finished stops with the others.
    if not all_have(writer.finished - before == todo, device):
        raise OutOfTime(f"{description}: stopped in time after {writer.finished} slices")
    return writer.finish(table["SOPInstanceUID"])


def _fill_store(writer: StoreWriter, embedder: Embedder, loader: Iterable[dict], bar: tqdm) -> None:
    """Embed the batches; whatever happens, what is done by then is noted."""
    usable = writer.note_failures(loader)
    try:
        with search_algorithms(embedder.tuning):
            for batch, outputs in predict(embedder, usable, embedder.device, embedder.opt_level):
                writer.write(batch, *outputs)
                bar.update(writer.finished - bar.n)
    finally:
        writer.flush()


def _is_finished(directory: Path, provenance: dict, device: torch.device) -> bool:
    """Whether there is a finished store by the same weights, as the first process sees it.

    One by other weights is no longer taken for finished.
    """
    finished = (directory / "store.json").exists()
    if rank() == 0 and finished:
        held = read_json(directory / "store.json")
        if not isinstance(held, dict):
            raise InputError(f"{directory / 'store.json'}: not a JSON object, as kit writes it")
        finished = held.get("weights_sha256") == provenance["weights_sha256"]
        if not finished:
            (directory / "store.json").unlink()
    return all_have(finished or rank() > 0, device)


def _stop_in_time(batches: Iterable[dict], deadline: float | None) -> Iterator[dict]:
    """The batches up to the one after which the deadline is past."""
    for batch in batches:
        yield batch
        if deadline is not None and time.monotonic() > deadline:
            return


class Embedder:
    """The model over batches → embeddings (B, E) float16 and logits (B, 6); the fastest way here.

    The classifier in `weights` is loaded when it is first needed. `at_once` images go through it at
    once; on a GPU always as many, filled up with zeros, because another number costs a search or a
    compilation of its own.
    """

    def __init__(self, weights: Path, device: torch.device, batch_size: int | None = None):
        self.weights, self.device, self._batch_size = weights, device, batch_size
        self.provenance = {"weights": weights.name, "weights_sha256": hash_file(weights)}
        self.filled = device.type == "cuda"
        self.compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.tuning = Tuning()
        self._noted: dict = {}

    @cached_property
    def model(self) -> Classifier:
        model = load_classifier(self.weights).to(self.device)
        model.backbone = fuse_normalization(model.backbone)
        return model

    @cached_property
    def at_once(self) -> int:
        size = self.model.config.image_size
        return self._batch_size or images.choose_batch(size, self.device)

    @property
    def opt_level(self) -> str:
        return amp.choose_convolution_level(self.device, self.model.config.opt_level)

    def choose_way(self, batches: int) -> dict:
        """Choose how to compute so many batches, once; return what is to be noted of it."""
        if self.device.type != "cuda" or self._noted:
            return self._noted
        chosen, times = choose_tuning(self._measure, batches)
        self._set_way(chosen)
        card = torch.cuda.get_device_name(self.device)
        noted = {"card": card, "way": str(chosen), "batch": self.at_once, "milliseconds": times}
        self._noted = {"speed": noted}
        return self._noted

    def _set_way(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.model.lay_out(tuning.layout)
        if tuning.compiled and self.compiled is None:
            self.compiled = torch.compile(self.model.embed, dynamic=False)

    def _measure(self, tuning: Tuning) -> float:
        """Seconds that a batch takes, of noise: zeros would make a card faster than it is."""
        self._set_way(tuning)
        config = self.model.config
        shape = (self.at_once, config.image_size, config.image_size, len(config.windows))
        noise = torch.randint(0, 256, shape, device=self.device, dtype=torch.uint8)
        image = noise if config.scale == "uint8" else noise / 255
        parts = torch.arange(self.at_once, device=self.device)[:, None]
        batch = {"image": image, "parts": parts.expand(-1, len(config.neighbours))}

        def step() -> None:
            with torch.inference_mode(), amp.autocast(self.device, self.opt_level):
                self(batch)

        with search_algorithms(tuning):
            return time_batches(step, self.device)

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = ({**batch, "parts": part} for part in batch["parts"].split(self.at_once))
        embeddings = torch.cat([self._embed(images.join_neighbours(piece)) for piece in pieces])
        logits = self.model.head(embeddings.to(self.model.head.weight.dtype))
        return embeddings.half(), logits.float()

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        count, model = len(image), self.model
        if self.filled and count < self.at_once:
            image = torch.cat([image, image.new_zeros(self.at_once - count, *image.shape[1:])])
        embed = self.compiled if self.compiled and self.tuning.compiled else model.embed
        many = model.embed_views(image, embed) if model.config.test_augmentation else embed(image)
        return many[:count]
