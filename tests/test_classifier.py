import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from dicom_files import write_slice
from safetensors.torch import save_file
from torch import nn

from kit import InputError
from kit.classifier import (
    Classifier,
    ClassifierConfig,
    checkpoint_activations,
    load_classifier,
    measure_loss,
    train_classifier,
)
from kit.competition import LABELS, TRAINING_PRIOR, weighted_log_loss
from kit.dicom.parsing import DicomError
from kit.images import read_image
from kit.recipes import RECIPES, SMALL_RESNEXT
from kit.runs.tables import read_slices
from kit.training.checkpoints import TrainingError, save_tensors, save_weights
from kit.training.inference import fuse_normalization
from kit.windowing import MEAN, STD, InputConfig


def config(**changes):
    return ClassifierConfig(
        **{
            "architecture": "resnext50_32x4d",
            "architecture_options": SMALL_RESNEXT,
            "image_size": 64,
            **changes,
        }
    )


def make_images(count=3, size=64):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8))


def test_logits_are_the_head_over_the_pooled_embedding_of_timm():
    torch.manual_seed(0)
    model = Classifier(config()).eval()
    images = make_images()
    normalized = (images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    features = model.backbone.forward_features(normalized.permute(0, 3, 1, 2))
    embedding = features.mean(dim=(2, 3))  # global average pool
    assert embedding.shape == (3, 512)
    torch.testing.assert_close(model.embed(images), embedding, atol=1e-4, rtol=1e-4)
    expected = embedding @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


def test_views_are_identity_flip_and_transpose():
    torch.manual_seed(0)
    model = Classifier(config()).eval()
    images = make_images(2)
    flipped = torch.from_numpy(images.numpy()[:, :, ::-1].copy())
    transposed = torch.from_numpy(images.numpy().transpose(0, 2, 1, 3).copy())
    expected = (model.embed(images) + model.embed(flipped) + model.embed(transposed)) / 3
    torch.testing.assert_close(model.embed_views(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale", "white"), [("uint8", 255), ("unit", 1), ("hounsfield", 1)])
def test_each_channel_of_each_neighbour_is_normalized_by_its_window(scale, white):
    torch.manual_seed(0)
    mean, std = (0.1, 0.2), (0.5, 0.25)
    seen = {"windows": ((40, 80), (80, 200)), "mean": mean, "std": std, "neighbours": (-1, 0, 1)}
    plain = {"crop": False, "subtract_minimum": False, "scale": scale}
    model = Classifier(config(**seen, **plain)).eval()
    images = torch.rand(2, 64, 64, 6) * white
    images = images.byte() if scale == "uint8" else images
    channels = [(images[..., k].float() / white - mean[k % 2]) / std[k % 2] for k in range(6)]
    expected = model.backbone(torch.stack(channels, dim=1))
    torch.testing.assert_close(model.embed(images), expected, atol=1e-4, rtol=1e-4)


# A MaxViT of four small stages: before its own head it widens 32 channels to 24.
TINY_MAXVIT = {"embed_dim": [8, 8, 16, 32], "stem_width": 8, "depths": [1, 1, 1, 1],
               "head_hidden_size": 24, "img_size": 64, "transformer_dim_head": 8}  # fmt: skip


def test_the_embedding_after_the_heads_convolution_is_its_mean():
    torch.manual_seed(0)
    vit = {"architecture": "maxvit_tiny_tf_512", "architecture_options": TINY_MAXVIT}
    model = Classifier(config(**vit, embedding="pre_logits")).eval()
    assert model.embedding_size == 24
    images = make_images(2)
    normalized = (images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    features = model.backbone.forward_features(normalized.permute(0, 3, 1, 2))  # (2, 32, 2, 2)
    layer = model.backbone.head.pre_logits.fc
    features = model.backbone.head.norm(features)
    each = torch.einsum("kc,bchw->bkhw", layer.weight[:, :, 0, 0], features)
    expected = (each + layer.bias[:, None, None]).tanh().mean(dim=(2, 3))
    torch.testing.assert_close(model.embed(images), expected, atol=1e-4, rtol=1e-4)
    # timm pools first: the tanh of a mean is not the mean of a tanh
    pooled = Classifier(config(**vit)).eval()
    weights = {
        name: value.flatten(1) if name == "backbone.head.pre_logits.fc.weight" else value
        for name, value in model.state_dict().items()
    }
    pooled.load_state_dict(weights)
    assert (pooled.embed(images) - expected).abs().max() > 1e-3


# A ConvNeXt whose blocks count: layer scale begins at 1, where timm has 1e-6.
SMALL_CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [16, 16, 32, 32], "ls_init_value": 1.0}


def test_layer_normalization_computes_alike_in_both_layouts_and_in_mixed_precision():
    torch.manual_seed(0)
    chosen = {"architecture": "convnext_tiny", "architecture_options": SMALL_CONVNEXT}
    model = Classifier(config(**chosen)).eval()
    images, found = make_images(2), {}
    with torch.inference_mode():
        expected = model.embed(images)
        model.lay_out(torch.contiguous_format)
        torch.testing.assert_close(model.embed(images), expected, atol=1e-5, rtol=1e-4)
        for block in model.backbone.stages:
            block.register_forward_hook(lambda *seen: found.update({seen[0]: seen[2].dtype}))
        for dtype in (torch.float16, torch.bfloat16):
            with torch.autocast("cpu", dtype):
                mixed = model.embed(images)
            # Products have 8 or 11 bits.
            assert (mixed - expected).std() < 0.03 * expected.std()
            assert set(found.values()) == {torch.float32}  # the sum over the blocks


def test_the_published_architecture_has_the_published_embedding():
    with torch.device("meta"):
        model = timm.create_model(RECIPES["published"].classifier.architecture, num_classes=0)
    assert model.num_features == 2048
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(86.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("mobilenetv3_small_050", 1024), ("vgg11", 4096), ("resnet18", 512), ("convnext_atto", 320)],
)
def test_any_timm_model_gives_its_pooled_embedding(architecture, size):
    model = Classifier(config(architecture=architecture, architecture_options={})).eval()
    assert model.embed(make_images(1)).shape == (1, size) == (1, model.embedding_size)
    assert model(make_images(1)).shape == (1, 6)


def test_the_prior_bias_starts_at_the_training_prior():
    model = Classifier(config(prior_bias=True)).eval()
    probabilities = model(make_images(1)).sigmoid()[0]
    expected = [TRAINING_PRIOR[label] for label in LABELS]
    torch.testing.assert_close(probabilities, torch.tensor(expected).float())


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_initial_weights_are_loaded_whatever_their_prefix(tmp_path, ending, prefix):
    torch.manual_seed(1)
    source = timm.create_model("resnext50_32x4d", **SMALL_RESNEXT)  # with its own 1,000-class head
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"weights{ending}"
    if ending == ".pth":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    model = Classifier(config(weights=str(path)), load=True)
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)
    assert torch.equal(model.backbone.bn1.running_var, source.bn1.running_var)


def test_weights_of_another_model_are_refused_naming_the_file(tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r18.safetensors")
    with pytest.raises(ValueError, match=r"r18\.safetensors: .*conv|r18.safetensors: .*layer"):
        Classifier(config(weights=str(tmp_path / "r18.safetensors")), load=True)


def test_pretrained_weights_without_a_network_fail_saying_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(RuntimeError, match=r"could not be downloaded .*--classifier-weights FILE"):
        Classifier(config(weights="pretrained"), load=True)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="timm makes no model of 'resnext7'"):
        Classifier(config(architecture="resnext7"))


def test_the_held_out_loss_is_that_of_the_epochs_weights(small_run):
    model = load_classifier(small_run.classifier(0) / "epoch1.safetensors")
    slices = read_slices(small_run)
    held_out = slices[slices["fold"] == 0].iloc[::3]
    found = measure_loss(model, held_out, torch.device("cpu"), 0)
    usable = held_out[held_out["path"].map(is_readable)]
    images = torch.from_numpy(np.stack([read_image(p, model.config) for p in usable["path"]]))
    with torch.inference_mode():
        probabilities = model(images).sigmoid().numpy()
    expected = weighted_log_loss(usable[list(LABELS)].to_numpy(), probabilities)
    assert found == pytest.approx(expected, rel=0.02)  # found in bfloat16
    (epoch,) = json.loads((small_run.classifier(0) / "history.json").read_text())
    whole = measure_loss(model, slices[slices["fold"] == 0], torch.device("cpu"), 0)
    assert epoch["validation_loss"] == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(("slices", "broken"), [(3, 0), (4, 1)])
def test_a_batch_of_one_image_trains_where_an_image_becomes_one_place(tmp_path, slices, broken):
    """At 32 pixels the last maps are of one place, over which one image has no variance."""
    paths = [write_slice(tmp_path / f"{number}.dcm") for number in range(slices)]
    for path in paths[:broken]:
        path.write_bytes(b"")
    table = pd.DataFrame({"path": list(map(str, paths)), **dict.fromkeys(LABELS, 0)})
    small = config(image_size=32, batch_size=2, epochs=1, augment=False, opt_level="O0")
    train_classifier(table, small, tmp_path / "out", torch.device("cpu"), workers=0)
    model = load_classifier(tmp_path / "out" / "epoch1.safetensors")
    counts = {name: int(v) for name, v in model.named_buffers() if name.endswith("tracked")}
    assert set(counts.values()) == {2}  # both batches were trained on


def is_readable(path) -> bool:
    try:
        read_image(path, InputConfig(image_size=64))
    except DicomError:
        return False
    return True


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:somebody/model"},
        {"architecture_options": {"checkpoint_path": "evil.pth"}},
        {"architecture_options": {"pretrained": True}},
    ],
)
def test_weights_from_elsewhere_name_no_further_source(tmp_path, changes, monkeypatch):
    """Else timm would unpickle a file, or ask a network, on behalf of a configuration."""
    model = Classifier(config())
    model.config = config(**changes)
    save_weights(tmp_path / "epoch1.safetensors", model)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(
        TrainingError, match=r"epoch1\.safetensors: .*named by --classifier-weights"
    ):
        load_classifier(tmp_path / "epoch1.safetensors")


@pytest.mark.parametrize("metadata", [{}, {"config": {"x": 1}}, {"config": []}])
def test_weights_without_their_configuration_are_refused_by_name(tmp_path, metadata):
    save_tensors(tmp_path / "bare.safetensors", {"head.weight": torch.zeros(1)}, metadata)
    with pytest.raises(TrainingError, match=r"bare\.safetensors: holds no ClassifierConfig"):
        load_classifier(tmp_path / "bare.safetensors")


def test_weights_of_another_configuration_are_refused_by_name(tmp_path):
    model = Classifier(config())
    model.config = config(architecture_options={**SMALL_RESNEXT, "base_width": 8})
    save_weights(tmp_path / "epoch1.safetensors", model)
    with pytest.raises(TrainingError, match=r"epoch1\.safetensors: its weights do not fit"):
        load_classifier(tmp_path / "epoch1.safetensors")


def test_a_saved_classifier_comes_back_with_its_configuration(tmp_path):
    torch.manual_seed(0)
    model = Classifier(config(learning_rate=0.5)).eval()
    save_weights(tmp_path / "epoch1.safetensors", model)
    loaded = load_classifier(tmp_path / "epoch1.safetensors")
    assert loaded.config == model.config
    assert torch.equal(loaded(make_images()), model(make_images()))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        # Places of windows and their masks are computed, and in no file.
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "embed_dim": 24, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 1, 1]},
        ),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_any_architecture_comes_back_whole(architecture, options, tmp_path):
    torch.manual_seed(0)
    chosen = ClassifierConfig(architecture=architecture, architecture_options=options)
    model = Classifier(chosen).eval()
    save_weights(tmp_path / "epoch1.safetensors", model)
    loaded = load_classifier(tmp_path / "epoch1.safetensors")
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    expected = {name: (value.dtype, value.shape) for name, value in model.state_dict().items()}
    found = {name: (value.dtype, value.shape) for name, value in loaded.state_dict().items()}
    assert found == expected
    assert torch.equal(loaded(make_images()), model(make_images()))


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
    """A convolution and its normalization; the convolution may also be used elsewhere."""

    def __init__(self, shared: bool = False, branching: bool = False, repeated: bool = False):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 1, bias=False)
        self.normalization = nn.BatchNorm2d(1)
        self.shared, self.branching, self.repeated = shared, branching, repeated

    def forward(self, images):
        if self.branching and images.sum() > 1e9:
            return images
        found = self.convolution(self.convolution(images) if self.repeated else images)
        return self.normalization(found) + (found if self.shared else 0)


def test_the_fused_weights_are_those_computed_by_hand():
    model = Pair().eval()
    with torch.no_grad():
        model.convolution.weight.fill_(3)
        model.normalization.running_mean.fill_(2)
        model.normalization.running_var.fill_(4 - 1e-5)  # the deviation is 2
        model.normalization.weight.fill_(5)
        model.normalization.bias.fill_(7)
    fused = fuse_normalization(model)
    # 5 (3 x − 2) / 2 + 7
    assert fused.convolution.weight.item() == pytest.approx(7.5)
    assert fused.convolution.bias.item() == pytest.approx(2)
    assert fused(torch.full((1, 1, 1, 1), 4.0)).item() == pytest.approx(32)


@pytest.mark.parametrize("architecture", ["resnext50_32x4d", "seresnext26d_32x4d", "convnext_atto"])
def test_a_fused_model_gives_the_same_embeddings(architecture):
    options = SMALL_RESNEXT if architecture == "resnext50_32x4d" else {}
    model = make_trained(timm.create_model(architecture, num_classes=0, **options))
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        fused = fuse_normalization(model)
        torch.testing.assert_close(fused(images), expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(model(images), expected)  # the model itself stays as it was
    assert count_normalizations(fused) == 0
    convolutions = [module for module in fused.modules() if isinstance(module, nn.Conv2d)]
    last = torch.channels_last
    assert all(module.weight.is_contiguous(memory_format=last) for module in convolutions)


@pytest.mark.parametrize("kind", ["shared", "branching", "repeated"])
def test_what_cannot_be_fused_is_left_as_it_is(kind):
    model = make_trained(Pair(**{kind: True}))
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    expected = model(images)
    fused = fuse_normalization(model)
    assert torch.equal(fused(images), expected)
    assert count_normalizations(fused) == 1


def test_weights_trained_on_other_images_are_loaded_with_a_warning(tmp_path, caplog):
    torch.manual_seed(0)
    saved = Classifier(config(mean=(0.5, 0.5, 0.5)))
    save_weights(tmp_path / "kit.safetensors", saved)
    backbone = saved.backbone.state_dict()
    names = {f"model.{name}": value.contiguous() for name, value in backbone.items()}
    save_file(names, tmp_path / "backbone.safetensors")
    head = {"last_linear.weight": torch.zeros(6, 512), "last_linear.bias": torch.zeros(6)}
    torch.save({"model": {**saved.backbone.state_dict(), **head}}, tmp_path / "others.pt")
    for name, words in (
        ("kit.safetensors", "kit.safetensors was trained on six labels with another mean"),
        ("backbone.safetensors", ""),
        ("others.pt", "others.pt was trained on six labels with another normalization"),
    ):
        caplog.clear()
        model = Classifier(config(weights=str(tmp_path / name)), load=True)
        assert words in caplog.text
        assert bool(words) == bool(caplog.text)
        torch.testing.assert_close(model.backbone.state_dict(), saved.backbone.state_dict())
    caplog.clear()
    same = config(mean=(0.5, 0.5, 0.5), weights=str(tmp_path / "kit.safetensors"))
    Classifier(same, load=True)
    assert not caplog.text


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("resnext50_32x4d", SMALL_RESNEXT),
        ("convnext_atto", {}),
        ("convnext_tiny", {**SMALL_CONVNEXT, "drop_path_rate": 0.5}),  # the same paths are dropped
    ],
)
def test_recomputed_activations_give_the_same_gradients(architecture, options):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Classifier(config(architecture=architecture, architecture_options=options)).train()
        if recompute:
            checkpoint_activations(model)
        model(make_images()).sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_an_architecture_that_cannot_recompute_activations_is_named():
    model = Classifier(config(architecture="vgg11", architecture_options={}))
    with pytest.raises(InputError, match="recompute_activations: timm does not offer it for"):
        checkpoint_activations(model)
