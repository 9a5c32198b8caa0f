"""Groups of weights, a rate for each part, and gradients that are clipped."""

from dataclasses import dataclass

import pytest
import torch
from small_training import Net, config, make_data
from torch import nn

from kit.training import amp
from kit.training.config import TrainingConfig
from kit.training.loop import weighted_loss
from kit.training.optimizer import make_optimizer, set_rate
from kit.training.step import Stepper


def test_biases_are_not_decayed():
    optimizer = make_optimizer(Net(config()), config(weight_decay=0.1))
    decays = {
        value.ndim: g["weight_decay"] for g in optimizer.param_groups for value in g["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}


def compute_loss(model, batch):
    return weighted_loss(model(batch["values"]), batch["labels"])


@dataclass(frozen=True, kw_only=True)
class PartsConfig(TrainingConfig):
    def find_factor(self, name):
        return 10.0 if name.startswith("layers.2") else 1.0


def test_each_part_learns_at_its_own_rate():
    """The first step of Adam moves every weight by the rate (Kingma and Ba 2015, section 2.1)."""
    model = Net(config()).eval()
    chosen = PartsConfig(learning_rate=1e-3, weight_decay=0.0)
    optimizer = make_optimizer(model, chosen)
    set_rate(optimizer, 2e-3)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    inputs, labels = map(torch.from_numpy, make_data())
    weighted_loss(model(inputs), labels).backward()
    optimizer.step()
    for name, value in model.named_parameters():
        rate = 2e-2 if name.startswith("layers.2") else 2e-3
        moved = (value.detach() - before[name]).abs()
        assert moved.max().item() == pytest.approx(rate, rel=1e-3), name


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2"])
@pytest.mark.parametrize("limit", [0.0, 0.01, 1e3])
def test_gradients_are_clipped_as_torch_does_it_whatever_the_loss_scale(limit, opt_level):
    """Also of a step in parts: it is the norm of their sum that counts."""
    inputs, labels = map(torch.from_numpy, make_data())
    torch.manual_seed(0)
    model = Net(config()).eval()  # without dropout
    expected = Net(config()).eval()
    expected.load_state_dict(model.state_dict())
    weighted_loss(expected(inputs), labels).backward()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), limit or 1e9)
    assert 0.01 < norm < 1e3  # so that only one of the limits clips
    optimizer = make_optimizer(model, config())
    amp.initialize(model, optimizer, opt_level)
    found = []
    optimizer.register_step_pre_hook(
        lambda *_: found.extend(
            value.grad.clone() for g in optimizer.param_groups for value in g["params"]
        )
    )
    stepper = Stepper(model, optimizer, compute_loss, 20, limit)
    stepper.take({"values": inputs, "labels": labels})
    names = {tuple(value.shape): value.grad for value in expected.parameters()}
    total = torch.stack([value.norm() for value in found]).norm()
    if limit == 0.01:
        assert total.item() == pytest.approx(0.01, rel=1e-4)
    for value in found:
        rough = 1e-6 if opt_level == "O0" else 0.03 * float(min(norm, limit or norm))
        torch.testing.assert_close(value, names[tuple(value.shape)], atol=rough, rtol=1e-4)


def test_a_gradient_that_overflows_is_skipped_though_it_is_clipped():
    inputs, labels = map(torch.from_numpy, make_data())
    model = Net(config()).eval()
    optimizer = make_optimizer(model, config())
    amp.initialize(model, optimizer, "O1")
    stepper = Stepper(model, optimizer, compute_loss, 50, 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs[0, 0] = torch.inf
    assert stepper.take({"values": inputs, "labels": labels}).read()[2] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
