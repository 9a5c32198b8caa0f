"""The rows of `gpu.py` about series: the LSTM's training, and the reference implementation's."""

from __future__ import annotations

import itertools

import numpy as np
import published
import samples
import torch
from gpu_bench import Bench, Line, count_rate, read_peak, watch_calls

from kit.lstm import SequenceLSTM, compute_loss, train_lstm
from kit.sequences import SeriesDataset, collate_series
from kit.training import amp
from kit.training.config import LSTMConfig
from kit.training.inference import move_batch
from kit.training.optimizer import make_optimizer
from kit.training.step import Stepper
from kit.training.tuning import time_batches


def measure_lstm(bench: Bench, hidden: int) -> Line:
    """An epoch by the package's training, 4 series a step, from the memory-mapped embeddings."""
    embeddings, table = samples.make_series(16 * bench.steps, bench.hidden[0])
    series = SeriesDataset(embeddings, table, table["embidx"])
    config = LSTMConfig(hidden_size=hidden, embedding_size=bench.hidden[0], epochs=1)
    with watch_calls(Stepper, "take") as times:
        train_lstm(series, config, bench.folder / f"lstm{hidden}", bench.device)
    return describe_lstm(bench, hidden, count_rate(times, 4), len(table) / len(series))


def measure_lstm_on_device(bench: Bench, hidden: int) -> Line:
    """Steps on one batch of 4 series that is already on the device."""
    embeddings, table = samples.make_series(4, bench.hidden[0])
    dataset = SeriesDataset(embeddings, table, table["embidx"])
    config = LSTMConfig(embedding_size=bench.hidden[0], hidden_size=hidden)
    model = SequenceLSTM(config).to(bench.device).train()
    model, optimizer = amp.initialize(model, make_optimizer(model, config), "O1")
    stepper = Stepper(model, optimizer, compute_loss, 4)
    batch = collate_series([dataset[number] for number in range(4)])
    batch = {**move_batch(batch, bench.device), "mask": batch["mask"]}  # as training has it
    seconds = time_batches(lambda: stepper.take(batch), bench.device, 4 * bench.steps)
    return describe_lstm(bench, hidden, 4 / seconds, len(table) / len(dataset))


def describe_lstm(bench: Bench, hidden: int, rate: float, slices: float) -> Line:
    """A line of LSTM training: `rate` series a second of `slices` slices on average."""
    operations = 3 * slices * count_sequence_operations(hidden, bench.hidden[0])
    note = f"{4000 / rate:.1f} ms a step of 4 series"
    return Line(rate, "series/s", operations, read_peak(bench.device), note)


def count_sequence_operations(hidden: int, embedding: int) -> float:
    """Floating-point operations of the LSTM's forward pass for one slice."""
    layers = 2 * 4 * hidden * (3 * embedding + hidden) + 2 * 4 * hidden * (2 * hidden + hidden)
    skip = 0 if hidden == embedding else 2 * embedding * 2 * hidden
    return 2.0 * (layers + 2 * (2 * hidden) ** 2 + 2 * hidden * 6 + skip)


def measure_published_lstm(bench: Bench) -> Line:
    """A step of the reference in apex's O1, by torch's own AMP."""
    hidden = bench.hidden[0]
    embeddings, table = samples.make_series(4 * bench.steps, hidden)
    dataset = published.SeriesDataset(embeddings.astype(np.float32), table)
    model = published.make_lstm(hidden, hidden).to(bench.device).train()
    optimizer = published.make_optimizer(model)
    scaler = torch.amp.GradScaler(bench.device.type)
    # Mixed precision is measured on a GPU; many CPUs cannot run an `nn.LSTM` in bfloat16.
    mixed = torch.float16 if bench.device.type == "cuda" else None
    draw = itertools.cycle(np.arange(len(dataset)).reshape(-1, 4))

    def step() -> None:
        batch = published.load_batch(dataset, next(draw), bench.device)
        published.train_step(model, optimizer, batch, mixed, scaler)

    seconds = time_batches(step, bench.device, bench.steps)
    note = f"{1000 * seconds:.1f} ms a step of 4 series"
    return Line(4 / seconds, "series/s", peak=read_peak(bench.device), note=note)
