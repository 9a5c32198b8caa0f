"""One step of the optimizer: over all processes, in parts that fit the card, read one step late.

A step equals that of one process that computes the whole batch at once, except for what batch
normalization sees: that is the images of one part.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from kit.progress import log
from kit.training import amp, distributed
from kit.training.checkpoints import TrainingError
from kit.training.optimizer import clip_gradients, list_parameters
from kit.training.parts import count_fitting, count_slices, split_batch, take_examples
from kit.training.tuning import Tuning, choose_tuning, search_algorithms, time_batches

_AHEAD = 2  # batches made before they are needed


@dataclass(frozen=True)
class Outcome:
    """What came of a step. `read` waits for the device until the step is done.

    `names` are those of this process's part of the batch, for messages.
    """

    where: str
    names: list[str]
    figures: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[float, float, float, float]:
        """The loss of the whole batch, that of this process's part, skipped steps in a row, past.

        `past` is not 0 where a process said that its time is over.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, own, skipped, past = self.figures.tolist()
        return loss, own, skipped, past


class Stepper:
    """Takes the steps of an optimizer. `at_once` examples go through the model at a time.

    Gradients whose joint norm is above `norm_limit` are scaled to it, unless that is 0.

    `compute_loss(model, batch)` gives the mean loss over the slices of a batch of tensors (B, …),
    with `labels` and, where series are padded, a `mask`; it moves the batch to the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute_loss: Callable[[nn.Module, dict], torch.Tensor],
        at_once: int,
        norm_limit: float = 0.0,
    ):
        self.model, self.optimizer, self.compute_loss = model, optimizer, compute_loss
        self.device = next(model.parameters()).device
        self.at_once, self.norm_limit = at_once, norm_limit
        self.tuning = Tuning()
        self.compiled: tuple[Callable, set[int]] | None = None  # for parts of so many examples

    def take(
        self, batch: dict | None, seed: int = 0, where: str = "", past: bool = False
    ) -> Outcome | None:
        """Take a step on this process's part of a batch; None and no step where all have none.

        Raises `TrainingError` naming `where` if the card cannot hold one example.
        """
        slices, own = 0, torch.zeros((), device=self.device)
        self._drop_gradients()
        if batch is not None:
            slices = count_slices(batch)
            own = self._accumulate_fitting(batch, seed, where)
        weights = torch.full_like(own, slices), torch.full_like(own, past)
        figures = torch.stack([own * slices, *weights])
        distributed.add_figures(figures)
        loss, total, past_anywhere = figures[0] / figures[1], figures[1], figures[2]
        if slices == 0 and not total:  # only a process without slices asks, and waits
            return None
        scaling = amp.find_scaling(self.optimizer)
        distributed.add_gradients(list_parameters(self.optimizer), slices / total)
        scaling.unscale_gradients()
        clip_gradients(self.optimizer, self.norm_limit)
        self.optimizer.step()
        found = torch.stack([loss, own, scaling.skipped_in_a_row, past_anywhere])
        names = [] if batch is None else list(map(str, batch.get("names", [])))
        return Outcome(where, names, *_start_reading(found))

    def _accumulate_fitting(self, batch: dict, seed: int, where: str) -> torch.Tensor:
        """Compute the gradients, in smaller parts if the card's memory turns out to be short."""
        while True:
            torch.manual_seed(seed)
            try:
                return self._accumulate(batch)
            except torch.cuda.OutOfMemoryError as error:
                shortage = str(error)
            # Not in the handler: the error holds on to what the failed part had computed.
            self._drop_gradients()
            torch.cuda.empty_cache()
            self.at_once = min(self.at_once, len(batch["labels"]))
            if self.at_once == 1:
                raise TrainingError(
                    f"{where}: the card cannot hold the model with one example; smaller images, "
                    "--classifier-recompute-activations or, of a joint model, fewer "
                    f"--slices-at-once need less memory ({shortage})"
                )
            self.at_once = -(-self.at_once // 2)
            slower = ", no longer compiled" if self.compiled and self.tuning.compiled else ""
            log.warning(
                f"kit: {where}: out of memory; going on with {self.at_once} at once{slower}"
            )

    def _accumulate(self, batch: dict) -> torch.Tensor:
        """Add up the gradients of the mean loss over the slices of a batch; return that loss."""
        loss, slices = torch.zeros((), device=self.device), count_slices(batch)
        with search_algorithms(self.tuning):
            for part in split_batch(batch, self.at_once):
                model = self._choose_model(len(part["labels"]))
                own = self.compute_loss(model, part) * (count_slices(part) / slices)
                with amp.scale_loss(own, self.optimizer, delay_unscale=True) as scaled:
                    scaled.backward()
                loss += own.detach()
        return loss

    def _drop_gradients(self) -> None:
        """Drop them, also those of half-precision weights whose masters did not get them yet."""
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _choose_model(self, examples: int) -> Any:
        """The compiled model for the sizes it was compiled for: others would take minutes more."""
        if self.tuning.compiled and self.compiled and examples in self.compiled[1]:
            return self.compiled[0]
        return self.model

    def choose_way(self, batch: dict, steps: int, where: str) -> dict:
        """Choose how convolutions compute for so many steps, by timing `batch` on a GPU.

        Weights and buffers stay as they are. Returns what is to be noted of it, if anything. Raises
        `TrainingError` naming `where` if the card cannot hold one example.
        """
        if not is_tunable(self.model, self.device):
            return {}

        def measure(tuning: Tuning) -> float:
            self.set_way(tuning, batch)
            return time_batches(lambda: self._accumulate(batch), self.device, calls=3)

        with self._keep_buffers():
            self._accumulate_fitting(batch, 0, where)  # a resumed run may be on a smaller card
            chosen, times = choose_tuning(measure, steps)
        self.set_way(chosen, batch)
        card = torch.cuda.get_device_name(self.device)
        return {"card": card, "way": str(chosen), "milliseconds": times, "at_once": self.at_once}

    def set_way(self, tuning: Tuning, batch: dict) -> None:
        """Have the model compute in a way; compiled for the sizes of the parts of `batch`."""
        self.tuning = tuning
        model = cast(Any, self.model)
        model.lay_out(tuning.layout)
        # A fused optimizer takes its weights and its state only in the layout of the gradients.
        for parameter, master in amp.find_scaling(self.optimizer).masters:
            master.data = torch.empty_like(parameter, dtype=master.dtype).copy_(master)
            master.grad = None
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if tuning.compiled and self.compiled is None:
            sizes = {len(part["labels"]) for part in split_batch(batch, self.at_once)}
            self.compiled = torch.compile(model, dynamic=False), sizes

    @contextlib.contextmanager
    def _keep_buffers(self) -> Iterator[None]:
        """Put back, after the block, what batch normalization counts, and drop the gradients."""
        buffers = [*self.model.buffers()]
        before = [value.clone() for value in buffers]
        try:
            yield
        finally:
            for value, earlier in zip(buffers, before, strict=True):
                value.copy_(earlier)
            self._drop_gradients()
            torch.cuda.empty_cache()

    def fit_memory(self, batch: dict) -> None:
        """Lower `at_once` to what the free memory of a GPU holds, by what the first images take.

        Series take so little that a shortage is left to `take`, which halves `at_once`.
        """
        if self.device.type != "cuda" or "mask" in batch or len(batch["labels"]) < 4:
            return
        with self._keep_buffers():
            try:
                _, two, four = (self._measure_peak(batch, count) for count in (2, 2, 4))
                self.at_once = min(self.at_once, count_fitting(self._count_free(), two, four))
            except torch.cuda.OutOfMemoryError:
                self.at_once = 1

    def _measure_peak(self, batch: dict, count: int) -> int:
        """The bytes that the gradients of so many examples take beside what is held anyway."""
        self._drop_gradients()
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        (part,) = split_batch(take_examples(batch, 0, count), count)
        self._accumulate(part)
        return torch.cuda.max_memory_allocated(self.device) - held

    def _count_free(self) -> int:
        """The bytes of the card that gradients and activations may take."""
        self._drop_gradients()
        reserved = torch.cuda.memory_reserved(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + reserved
        free -= torch.cuda.memory_allocated(self.device)
        kept = 0 if self.optimizer.state else 2  # Adam's means come with the first step
        sizes = [value.numel() * value.element_size() for value in list_parameters(self.optimizer)]
        return free - (kept + 1) * sum(sizes)  # gradients beside the activations of later parts


def is_tunable(model: nn.Module, device: torch.device) -> bool:
    """Whether it is worth timing in which way a model computes: convolutions on a GPU."""
    return device.type == "cuda" and hasattr(model, "lay_out")


def _start_reading(figures: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Have figures copied to the CPU without waiting; the event comes when they are there."""
    if not figures.is_cuda:
        return figures, None
    copied = figures.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(figures.device))
    return copied, event


def make_ahead(
    make_batch: Callable[[np.ndarray], dict], batches: list[np.ndarray], device: torch.device
) -> Iterator[dict]:
    """Make batches in a thread, while the device works on those before."""
    with ThreadPoolExecutor(1, initializer=_enter_device, initargs=(device,)) as thread:
        waiting: deque[Future[dict]] = deque()
        try:
            for numbers in batches:
                waiting.append(thread.submit(make_batch, numbers))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for batch in waiting:
                batch.cancel()


def _enter_device(device: torch.device) -> None:
    """Have this thread pin its memory for `device`; else it would open a context on the first."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
