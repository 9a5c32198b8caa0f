"""Grad-CAM: maps by hand, the layer that is chosen, and the scale of the overlay."""

import numpy as np
import pytest
import torch
from report_pages import make_classifier

from kit.recipes import SMALL_RESNEXT
from kit.report.gradcam import compute_gradcam, find_map_layer, scale_maps


def test_gradcam_under_a_pooled_linear_head_is_the_weighted_sum_of_features():
    # There the gradient is the head's weight over the number of places.
    model = make_classifier("resnext50_32x4d", 192, **SMALL_RESNEXT)
    images = torch.randint(0, 256, (2, 192, 192, 3), dtype=torch.uint8)
    layer = find_map_layer(model)
    assert layer is model.backbone.layer4
    maps, logits = compute_gradcam(model, layer, images)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-5)
        normalized = (images.permute(0, 3, 1, 2) - model.mean) / model.std
        features = model.backbone.forward_features(normalized)
        expected = torch.einsum("kc,bchw->bkhw", model.head.weight, features).relu() / 36
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)
    assert maps.max() > 0
    assert not [weight for weight in model.parameters() if weight.grad is not None]


def test_gradcam_lights_up_where_the_evidence_is():
    class Patches(torch.nn.Module):
        """Means of 8 × 8 patches as the one feature map."""

        feature_info = ({"module": "pool", "num_chs": 3},)

        def __init__(self):
            super().__init__()
            self.pool = torch.nn.AvgPool2d(8)

        def forward(self, images):
            return self.pool(images).mean(dim=(2, 3))

    model = make_classifier("resnext50_32x4d", 96, **SMALL_RESNEXT)
    model.backbone, model.head = Patches(), torch.nn.Linear(3, 6)
    torch.nn.init.ones_(model.head.weight)
    images = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    images[0, 16:24, 64:72] = 255  # row 2, column 8 of the patches
    maps, _ = compute_gradcam(model, find_map_layer(model), images)
    assert maps.shape == (1, 6, 12, 12)
    assert np.unravel_index(maps[0, 5].argmax(), (12, 12)) == (2, 8)


@pytest.mark.parametrize(
    ("architecture", "image_size", "module", "places"),
    [
        ("resnet10t", 64, "layer2", 8),  # its last stage has 2 × 2 places
        ("resnet10t", 192, "layer4", 6),
        ("resnet10t", 8, "act1", 4),  # no stage is fine enough: the first
        ("convnext_atto", 96, "stages.2", 6),
        ("tf_efficientnet_b0", 96, "blocks.4", 6),
    ],
)
def test_gradcam_takes_the_deepest_stage_that_is_not_too_coarse(
    architecture, image_size, module, places
):
    model = make_classifier(architecture, image_size)
    layer = find_map_layer(model)
    assert layer is model.backbone.get_submodule(module)
    images = torch.randint(0, 256, (1, image_size, image_size, 3), dtype=torch.uint8)
    assert compute_gradcam(model, layer, images)[0].shape == (1, 6, places, places)


def test_a_map_is_as_strong_as_the_prediction_and_not_stretched_over_a_series():
    maps = np.zeros((2, 6, 2, 2))
    maps[0, 5] = [[8, 2], [0, 4]]
    maps[1, 5] = [[0, 0], [1e-3, 0]]
    logits = np.full((2, 6), -9.0)
    logits[0, 5], logits[1, 5] = np.log(0.8 / 0.2), np.log(0.01 / 0.99)
    scaled = scale_maps(maps, logits)
    assert scaled[0, 5].tolist() == [[204, 51], [0, 102]]  # of 255: 0.8, 0.2, 0 and 0.4
    assert scaled[1, 5].tolist() == [[0, 0], [3, 0]]
    assert scaled[:, :5].max() == 0
