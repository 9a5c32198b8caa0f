"""The slice classifier: a timm model, its pooled embedding, six logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit import images
from kit.competition import LABELS, TRAINING_PRIOR
from kit.cpu import spare_threads
from kit.processes import restart_once
from kit.training.checkpoints import TrainingError, fill_model, load_trained, load_weights
from kit.training.config import TrainingConfig, option
from kit.training.loop import fit, predict, weighted_loss

# Of the windowed training images, channels in the order of `windowing.WINDOWS` (published code).
MEAN = (0.22363983, 0.18190407, 0.2523437)
STD = (0.32451536, 0.2956294, 0.31335256)


VALIDATION_SLICES = 2048  # enough to see a loss rise; a hundredth of a published epoch's time

# Arguments of `timm.create_model` that make it read a file or ask a network.
_SOURCES = (
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_strict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """The slice classifier and how it is trained. Defaults are the published ones."""

    architecture: str = option(
        "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "timm model with a pooled embedding"
    )
    architecture_options: dict = field(
        default_factory=dict, metadata={"help": "further arguments of the timm model, as JSON"}
    )
    weights: str = option(
        "", "initial weights: a .safetensors or .pth file, pretrained, or '' for random"
    )
    image_size: int = option(480, "side of the images in pixels")
    crop: bool = option(True, "crop to the head")
    repair: bool = option(True, "correct the wrong rescale intercept of 123 training files")
    augment: bool = option(True, "flip, shift, scale, rotate and transpose while training")
    prior_bias: bool = option(False, "start the head at the training prior")
    test_augmentation: bool = option(True, "average embeddings over identity, flip and transpose")


class Classifier(nn.Module):
    """Images → logits (B, 6); `embed` gives the pooled embedding (B, E) under the linear head."""

    def __init__(self, config: ClassifierConfig, load: bool = False):
        """`load` fetches the initial weights that `config.weights` names."""
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config, load)
        # What is pooled is, in some models, made wider or narrower before their own head.
        self.embedding_size = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        self.head = nn.Linear(self.embedding_size, len(LABELS))
        if config.prior_bias:
            prior = torch.tensor([TRAINING_PRIOR[label] for label in LABELS], dtype=torch.float32)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.bias.copy_(torch.logit(prior))
        for name, values in (("mean", MEAN), ("std", STD)):
            # On the CPU also where the weights are nowhere yet: no file has these.
            values = torch.tensor(values, device="cpu")[:, None, None] * 255
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, S, S, 3) → logits (B, 6)."""
        return self.head(self.embed(images))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, S, S, 3) → embedding (B, E)."""
        # The loader's layout, channels last, is also the fastest for convolutions.
        channels_first = images.permute(0, 3, 1, 2)
        normalized = (channels_first - self.mean) / self.std
        return self.backbone(normalized.to(self.head.weight.dtype))

    def embed_views(self, images: torch.Tensor) -> torch.Tensor:
        """As `embed`, averaged over identity, horizontal flip and transpose: the published TTA."""
        views = (images, images.flip(2), images.transpose(1, 2))
        return torch.stack([self.embed(view).float() for view in views]).mean(dim=0)


def make_backbone(config: ClassifierConfig, load: bool) -> nn.Module:
    """The timm model without its own head, with the weights asked for."""
    import timm

    _refuse_sources(config)
    pretrained = load and config.weights == "pretrained"
    try:
        model = timm.create_model(
            config.architecture, pretrained=pretrained, num_classes=0, **config.architecture_options
        )
    except Exception as error:
        if not pretrained:
            raise ValueError(
                f"timm makes no model of {config.architecture!r} with "
                f"{config.architecture_options}: {error}"
            ) from error
        raise RuntimeError(
            f"the weights of {config.architecture} could not be downloaded "
            f"({type(error).__name__}): fetch them where there is a network and name the file by "
            "--classifier-weights FILE.safetensors"
        ) from error
    if load and config.weights and not pretrained:
        load_backbone(model, Path(config.weights))
    return model.to(memory_format=torch.channels_last)


def _refuse_sources(config: ClassifierConfig) -> None:
    """A configuration may have come with weights from elsewhere: it must not read or fetch more."""
    named = [name for name in _SOURCES if name in config.architecture_options]
    if named or ":" in config.architecture:
        raise ValueError(
            f"architecture {config.architecture!r} with {config.architecture_options}: weights are "
            "named by --classifier-weights alone"
        )


def load_backbone(model: nn.Module, path: Path) -> None:
    """Load a state dict of the backbone, with or without a prefix; its head is left out.

    `.safetensors`, or `.pth`/`.pt`/`.bin` read with `weights_only=True`, so that nothing in the
    file is executed. Raises `ValueError` naming the file and the first weights that do not fit.
    """
    if path.suffix == ".safetensors":
        weights, _ = load_weights(path)
    else:
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            _unpickling_error(),
        ) as error:
            raise ValueError(f"{path}: not a state dict that can be read safely") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: holds no state dict")
    for prefix in ("module.", "backbone.", "model."):
        if any(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in weights and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{path}: holds no weights {name!r} for {type(model).__name__}")
        if name in weights and weights[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


def load_classifier(path: Path) -> Classifier:
    """A trained classifier from the weights and configuration in a `.safetensors` file.

    Raises `TrainingError` naming the file where it holds no such model.
    """
    weights, config = load_trained(path, ClassifierConfig)
    try:
        model = _make_empty(config)
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error
    fill_model(model, weights, path)
    return model.to(memory_format=torch.channels_last).eval()


def _make_empty(config: ClassifierConfig) -> Classifier:
    """A classifier to be filled, without random weights where the architecture allows that.

    To draw them takes ResNeXt-101 a second.
    """
    try:
        with torch.device("meta"):
            model = Classifier(config)
    except ValueError:  # some compute with values while they are made
        return Classifier(config)
    saved = model.state_dict()
    unsaved = [value for name, value in model.named_buffers() if name not in saved]
    return Classifier(config) if any(value.is_meta for value in unsaved) else model


@restart_once
def train_classifier(
    table: pd.DataFrame,
    config: ClassifierConfig,
    directory: Path,
    device: torch.device,
    workers: int,
    validation: pd.DataFrame | None = None,
    description: str = "Classifier",
    deadline: float | None = None,
) -> list[dict]:
    """Train on the labelled slices of `table`; weights of every epoch go to `directory`.

    With `validation`, held-out slices, the history has the loss over some of them, evenly spread,
    after each epoch too: to be watched, while the whole of them is scored after the embedding.
    """
    spare_threads(config.image_size)
    torch.manual_seed(config.seed)
    begun = (directory / "checkpoint.safetensors").exists()  # then the initial weights are no more
    model = Classifier(config, load=not begun).to(device)
    dataset = images.SliceDataset(
        table, config.image_size, config.crop, config.repair, config.augment, config.seed
    )

    def make_batches(epoch: int, batches: list[np.ndarray]) -> Iterable[dict | None]:
        # After a restart there may be a single file left, and that one broken.
        dataset.epoch, usable = epoch, sum(map(len, batches)) < min(32, len(dataset))
        for batch in images.load_batches(dataset, batches, workers):
            usable = usable or batch["image"] is not None
            yield batch if batch["image"] is not None else None
        if not usable:
            row, reason = batch["failed"][0]
            raise TrainingError(
                f"epoch {epoch}: no file gives an image, {dataset.paths[row]} for one: {reason}"
            )

    def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
        return weighted_loss(model(batch["image"]), batch["labels"])

    def validate(model: Classifier) -> dict:
        loss = measure_loss(model, validation, device, workers)
        return {} if loss is None else {"validation_loss": loss}

    return fit(
        model,
        config,
        make_batches,
        compute_loss,
        len(dataset),
        directory,
        description=description,
        deadline=deadline,
        validate=validate if validation is not None and len(validation) else None,
    )


def measure_loss(
    model: Classifier, table: pd.DataFrame, device: torch.device, workers: int
) -> float | None:
    """The loss over at most `VALIDATION_SLICES` labelled slices, evenly spread over `table`.

    None where no file of them gives an image.
    """
    config = model.config
    spread = np.linspace(0, len(table) - 1, min(len(table), VALIDATION_SLICES)).astype(int)
    dataset = images.SliceDataset(table.iloc[spread], config.image_size, config.crop, config.repair)
    batch_size = images.choose_batch(config.image_size, device)
    batches = np.array_split(np.arange(len(spread)), -(-len(spread) // batch_size))
    loader = images.load_batches(dataset, batches, workers)
    usable = (batch for batch in loader if batch["image"] is not None)
    outputs = predict(lambda batch: model(batch["image"]), usable, device, config.opt_level)
    found = [(logits.float().cpu(), batch["labels"]) for batch, logits in outputs]
    return float(weighted_loss(*map(torch.cat, zip(*found, strict=True)))) if found else None


def _unpickling_error() -> type[Exception]:
    import pickle  # for the name of its error alone: nothing is unpickled

    return pickle.UnpicklingError
