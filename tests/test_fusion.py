"""Fused normalization gives the same numbers, and is left alone where it would not."""

import pytest
import timm
import torch
from torch import nn

from kit.fusion import fuse_normalization
from kit.recipes import SMALL_RESNEXT


def count_normalizations(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def make_trained(model: nn.Module) -> nn.Module:
    """As after training: statistics and weights unlike those of a new layer; in float64."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.double().eval()


class Pair(nn.Module):
    """A convolution and its normalization; the convolution's output may be wanted elsewhere too."""

    def __init__(self, shared: bool = False, branching: bool = False):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 1, bias=False)
        self.normalization = nn.BatchNorm2d(1)
        self.shared, self.branching = shared, branching

    def forward(self, images):
        if self.branching and images.sum() > 1e9:
            return images
        found = self.convolution(images)
        return self.normalization(found) + (found if self.shared else 0)


def test_the_fused_weights_are_those_computed_by_hand():
    model = Pair().eval()
    with torch.no_grad():
        model.convolution.weight.fill_(3)
        model.normalization.running_mean.fill_(2)
        model.normalization.running_var.fill_(4 - 1e-5)  # the deviation is 2
        model.normalization.weight.fill_(5)
        model.normalization.bias.fill_(7)
    fuse_normalization(model)
    # 5 (3 x − 2) / 2 + 7
    assert model.convolution.weight.item() == pytest.approx(7.5)
    assert model.convolution.bias.item() == pytest.approx(2)
    assert model(torch.full((1, 1, 1, 1), 4.0)).item() == pytest.approx(32)


@pytest.mark.parametrize("architecture", ["resnext50_32x4d", "seresnext26d_32x4d"])
def test_a_fused_model_gives_the_same_embeddings(architecture):
    options = SMALL_RESNEXT if architecture == "resnext50_32x4d" else {}
    model = make_trained(timm.create_model(architecture, num_classes=0, **options))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        fuse_normalization(model)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert count_normalizations(model) == 0


@pytest.mark.parametrize("kind", ["shared", "branching"])
def test_what_cannot_be_fused_is_left_as_it_is(kind):
    model = make_trained(Pair(**{kind: True}))
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    expected = model(images)
    fuse_normalization(model)
    assert torch.equal(model(images), expected)
    assert count_normalizations(model) == 1
