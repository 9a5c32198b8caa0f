"""A net and data so small that a training takes no time."""

import itertools

import numpy as np
import torch
from torch import nn

from kit.training.config import TrainingConfig
from kit.training.loop import Task, fit, weighted_loss


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.2), nn.Linear(16, 6))

    def forward(self, values):
        return self.layers(values)


def make_data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 5)).astype(np.float32)
    return inputs, (inputs @ rng.normal(size=(5, 6)) > 0).astype(np.float32)


def train(directory, config, stop_after=None, poison=None, poison_after=None, **options):
    """Fit the net; `stop_after` batches an error as of a killed process breaks it off.

    `poison` is the epoch and first example of a batch with a NaN; after `poison_after` batches all
    have one.
    """
    torch.manual_seed(config.seed)
    inputs, labels = make_data()
    served = itertools.count(1)

    def make_batches(epoch, batches):
        for batch in batches:
            number = next(served)
            if number == stop_after:
                raise KeyboardInterrupt
            values = torch.from_numpy(inputs[batch].copy())
            ill = poison_after is not None and number > poison_after
            if ill or poison == (epoch, int(batch[0])):
                values[0, 0] = torch.nan
            yield {
                "values": values,
                "labels": torch.from_numpy(labels[batch]),
                "names": [f"slice{number}" for number in batch],
            }

    def compute_loss(model, batch):
        return weighted_loss(model(batch["values"]), batch["labels"])

    net = Net(config)
    history = fit(net, config, Task(50, make_batches, compute_loss), directory, **options)
    return net, history


def config(**changes):
    return TrainingConfig(**{"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **changes})
