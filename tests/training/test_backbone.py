"""Initial weights for three channels in a model of others: as timm adapts its own, and no more."""

import logging

import pytest
import timm
import torch
from safetensors.torch import save_file

from kit import InputError
from kit.classifier import Classifier, make_backbone
from kit.recipes import SMALL_RESNEXT
from kit.training.backbone import load_backbone
from kit.training.config import ClassifierConfig

# Of each kind of stem that timm names otherwise: four stages, as small as they can be.
SMALL_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
SMALL_MAXVIT = {"embed_dim": [8, 8, 16, 32], "stem_width": 8, "depths": [1, 1, 1, 1],
                "head_hidden_size": 24, "img_size": 64, "transformer_dim_head": 8}  # fmt: skip
STEMS = {
    "convnext_small.in12k_ft_in1k_384": ("stem.0", SMALL_CONVNEXT),
    "resnext101_32x8d.fb_wsl_ig1b_ft_in1k": ("conv1", SMALL_RESNEXT),
    "maxvit_tiny_tf_512.in1k": ("stem.conv1", SMALL_MAXVIT),
}


def draw_file(folder, architecture, options):
    """Weights for three channels, with a head of 1,000 classes, as a hub's file holds them."""
    torch.manual_seed(5)
    weights = timm.create_model(architecture, pretrained=False, **options).state_dict()
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path, weights


def config(architecture, options, path, **changes):
    return ClassifierConfig(
        architecture=architecture,
        architecture_options=options,
        weights=str(path),
        image_size=64,
        **{"neighbours": (-1, 0, 1), **changes},
    )


@pytest.mark.parametrize("architecture", STEMS)
def test_a_file_gives_what_timm_itself_makes_of_its_pretrained_weights(tmp_path, architecture):
    stem, options = STEMS[architecture]
    path, drawn = draw_file(tmp_path, architecture, options)
    found = make_backbone(config(architecture, options, path), load=True).state_dict()
    # What `weights=pretrained` calls, with the file in place of the download.
    pretrained = timm.create_model(
        architecture,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=0,
        in_chans=9,
        **options,
    ).state_dict()
    assert found.keys() == pretrained.keys()
    assert all(torch.equal(found[name], pretrained[name]) for name in found)
    # By hand: channel c of nine takes the weights of channel c mod 3, a third of them.
    for channel in range(9):
        expected = drawn[f"{stem}.weight"][:, channel % 3] / 3
        torch.testing.assert_close(found[f"{stem}.weight"][:, channel], expected)
    others = found.keys() - {f"{stem}.weight"}
    assert all(torch.equal(found[name], drawn[name]) for name in others)


@pytest.mark.parametrize("name", ["repeated", "summed", "as it is"])
def test_what_is_done_to_the_first_convolution_is_said(tmp_path, name, caplog):
    path, drawn = draw_file(tmp_path, "convnext_tiny", SMALL_CONVNEXT)
    one = {"windows": ((40, 80),), "mean": (0.5,), "std": (0.5,), "neighbours": (0,)}
    changes = {"repeated": {}, "summed": one, "as it is": {"neighbours": (0,)}}[name]
    said = {
        "repeated": [f"{path}: stem.0 has weights for 3 channels, repeated and scaled by 3/9 for "
                     "the model's 9"],
        "summed": [f"{path}: stem.0 has weights for 3 channels, summed for the model's 1"],
        "as it is": [],
    }[name]  # fmt: skip
    with caplog.at_level(logging.INFO, "kit"):
        model = make_backbone(config("convnext_tiny", SMALL_CONVNEXT, path, **changes), load=True)
    assert [record.getMessage() for record in caplog.records] == said
    if name == "summed":
        expected = drawn["stem.0.weight"].sum(dim=1, keepdim=True)
        torch.testing.assert_close(model.state_dict()["stem.0.weight"], expected)


def test_equal_neighbours_give_what_the_slice_alone_gives(tmp_path):
    """The windows keep their own weights, means and deviations in every neighbour."""
    # With batch normalization, which does not undo a wrong scale as that of a layer would.
    path, _ = draw_file(tmp_path, "resnext50_32x4d", SMALL_RESNEXT)
    alone, joined = (
        Classifier(
            config("resnext50_32x4d", SMALL_RESNEXT, path, neighbours=seen), load=True
        ).eval()
        for seen in ((0,), (-1, 0, 1))
    )
    image = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = alone.embed(image), joined.embed(torch.cat([image] * 3, dim=-1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        other = joined.embed(torch.cat([image] * 2 + [image.flip(-1)], dim=-1))
    assert (other - expected).abs().max() > 1e-2  # windows in another order are not the same


def spoil(weights: dict, name: str) -> None:
    """Make of weights for three channels some that no rule of timm's adapts."""
    stem = weights["stem.0.weight"]
    if name == "other channels":
        weights["stem.0.weight"] = stem[:, :2].contiguous()
    elif name == "other sides":
        weights["stem.0.weight"] = stem[..., :2].contiguous()
    elif name == "other outputs":
        weights["stem.0.weight"] = stem[:4].contiguous()
    else:  # a layer behind the first, which has three channels of its own here
        later = "stages.0.blocks.0.mlp.fc1.weight"
        weights[later] = weights[later][:, :3].contiguous()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other channels", r"stem\.0\.weight is \(8, 2, 4, 4\), not \(8, 9, 4, 4\)"),
        ("other sides", r"stem\.0\.weight is \(8, 3, 4, 2\), not \(8, 9, 4, 4\)"),
        ("other outputs", r"stem\.0\.weight is \(4, 3, 4, 4\), not \(8, 9, 4, 4\)"),
        ("another layer", r"mlp\.fc1\.weight is \(32, 3\), not \(32, 8\)"),
    ],
)
def test_no_other_difference_is_adapted(tmp_path, name, reason):
    path, weights = draw_file(tmp_path, "convnext_tiny", SMALL_CONVNEXT)
    spoil(weights, name)
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{reason}"):
        make_backbone(config("convnext_tiny", SMALL_CONVNEXT, path), load=True)


def test_weights_for_nine_channels_do_not_become_weights_for_three(tmp_path):
    nine = timm.create_model("convnext_tiny", in_chans=9, **SMALL_CONVNEXT).state_dict()
    path = tmp_path / "nine.safetensors"
    save_file(nine, path)
    three = timm.create_model("convnext_tiny", num_classes=0, **SMALL_CONVNEXT)
    with pytest.raises(InputError, match=r"stem\.0\.weight is \(8, 9, 4, 4\), not \(8, 3, 4, 4\)"):
        load_backbone(three, path)
    taken = timm.create_model("convnext_tiny", in_chans=9, num_classes=0, **SMALL_CONVNEXT)
    assert load_backbone(taken, path) is False  # a head of 1,000 classes
    assert torch.equal(taken.state_dict()["stem.0.weight"], nine["stem.0.weight"])


def test_weights_trained_on_six_labels_are_warned_of_as_well(tmp_path, caplog):
    """The kit's own classifier of one slice: loaded, adapted, and said to have seen another."""
    from kit.training.checkpoints import save_weights

    path = tmp_path / "epoch1.safetensors"
    save_weights(path, Classifier(config("convnext_tiny", SMALL_CONVNEXT, "", neighbours=(0,))))
    Classifier(config("convnext_tiny", SMALL_CONVNEXT, path), load=True)
    assert "was trained on six labels with another neighbours" in caplog.text
