"""Named configurations. A recipe is data: what is trained on which folds, and what is averaged."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from kit import InputError
from kit.training.config import ClassifierConfig, LSTMConfig, check_options, option


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes a run. Saved as `config.json`; every field is a flag of `kit run`."""

    name: str
    folds: int = option(5, "number of parts into which the patients are split", (1, 100))
    train_folds: tuple[int, ...] = option(
        (0, 1, 2), "parts held out in turn, as 0,1,2; empty: one model on all data"
    )
    bag_classifier_epochs: int = option(5, "number of last classifier epochs to embed with")
    bag_lstm_epochs: int = option(12, "number of last LSTM epochs to average")
    average_weights: bool = option(
        False, "average the weights of these LSTM epochs, not their predictions: one LSTM answers"
    )
    kept_epochs: int = option(
        12, "number of last averaged epochs whose weights stay, to predict other scans", (1, 1000)
    )
    seed: int = option(0, "seed of folds, weights, batches and augmentation", (0, 2**32 - 1))
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    lstm: LSTMConfig = field(default_factory=LSTMConfig)

    def __post_init__(self):
        check_options(self)
        for given, most, name in (
            (self.bag_classifier_epochs, self.classifier.epochs, "bag_classifier_epochs"),
            (self.bag_lstm_epochs, self.lstm.epochs, "bag_lstm_epochs"),
        ):
            if not 1 <= given <= most:
                raise InputError(f"{name} is {given}; it must be 1 to the {most} trained epochs")
        if self.train_folds and self.folds < 2:
            raise InputError("folds is 1; it must be at least 2 where folds are trained")
        if not all(0 <= fold < self.folds for fold in self.train_folds):
            raise InputError(f"train_folds {self.train_folds} are not among 0 to {self.folds - 1}")
        if len(set(self.train_folds)) < len(self.train_folds):
            raise InputError(f"train_folds {self.train_folds} name a fold twice")


# A real, small ResNeXt: one bottleneck a stage, cardinality 16, an embedding of 512.
SMALL_RESNEXT = {
    "layers": [1, 1, 1, 1],
    "channels": [16, 32, 64, 128],
    "cardinality": 16,
    "base_width": 4,
}

RECIPES = {
    # Minutes on two CPU cores, for the synthetic competition at 64 pixels.
    "demo": Recipe(
        name="demo",
        folds=3,
        train_folds=(0, 1, 2),
        bag_classifier_epochs=1,
        bag_lstm_epochs=3,
        classifier=ClassifierConfig(
            architecture="resnext50_32x4d",
            architecture_options=SMALL_RESNEXT,
            image_size=64,
            crop=False,
            prior_bias=True,
            optimizer="adamw",
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="one-cycle",
            batch_size=32,
            epochs=4,
        ),
        lstm=LSTMConfig(
            hidden_size=64,
            standardize=True,
            embedding_dropout=0.3,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="one-cycle",
            weight_decay=0.05,
            batch_size=8,
            epochs=6,
            opt_level="O0",
        ),
    ),
    # The authors' blog account: the sequence model alone is stated in full.
    "blog": Recipe(
        name="blog",
        train_folds=(0, 1),
        bag_classifier_epochs=1,
        bag_lstm_epochs=1,
        classifier=ClassifierConfig(weights="pretrained"),
        lstm=LSTMConfig(epochs=10, learning_rate=1e-4),
    ),
    # The cheapest published route, private score 0.04607: an LSTM on each classifier epoch.
    "single": Recipe(
        name="single",
        train_folds=(),
        bag_classifier_epochs=3,
        kept_epochs=2,
        classifier=ClassifierConfig(weights="pretrained", epochs=3, test_augmentation=False),
    ),
    # A stage-2 submission within one session on two T4 of Kaggle's. Not trained on the real data
    # yet. What others measured: ResNeXt-101 at 256 pixels, then a bidirectional LSTM, scored
    # 0.04989 privately (Burduja and others, Sensors 2020, 5611); the authors' validation was
    # 0.05780 at 384 and 0.05758 at 480 pixels; three views and 2,048 units, not 1,024 gained 4e-4.
    # Derived from that: 320 pixels, a private score of about 0.047 to 0.050. By published rates of
    # a T4, 256 pixels take 3 to 5 hours on two and 384 take 6 to 10: 320 should take 5 to 8. The
    # LSTM's rate is that of the recipe `blog`.
    "tonight": Recipe(
        name="tonight",
        folds=20,
        train_folds=(0,),
        bag_classifier_epochs=2,
        bag_lstm_epochs=3,
        classifier=ClassifierConfig(
            weights="pretrained", image_size=320, epochs=3, test_augmentation=False
        ),
        lstm=LSTMConfig(hidden_size=1024, epochs=6, learning_rate=1e-4),
    ),
    # `tonight` with what later models of CT changed in the classifier; folds and LSTM stay, so that
    # the two compare. Not trained on the real data yet, and no score can be derived. What others
    # did:
    # - Neighbours as channels: the released model of 2026 sees three slices in three windows
    #   (`kit.models.kinds`), the 1st of RSNA 2022 five slices, the 2nd of 2023 three, the 9th of
    #   2024 five.
    # - Backbone: a MaxViT-tiny (2026; the 2nd of 2023 found it best, ConvNeXt V2 nearly so), a
    #   ConvNeXt with AdamW and a cosine (9th of 2024). Here ConvNeXt, because a MaxViT has one
    #   image size.
    # - Rates: ConvNeXt's authors fine-tune at 5e-5 with less for early layers and drop path 0.2,
    #   the 2nd of 2023 at 4e-5 for 32 images; 1e-4 for 64 is derived. The schedule one-cycle is a
    #   warm-up, over three tenths of the steps, and a cosine: only the last epoch is annealed, and
    #   it alone is embedded.
    # - Float16: timm trained ConvNeXts in mixed precision on V100s, which like a T4 have no
    #   bfloat16. Losses became infinite with the authors' code (facebookresearch/ConvNeXt, issue
    #   131) and with ConvNeXt V2. Under O1 LayerNorm, and by layer scale the sum over the blocks,
    #   stay in float32; a step that overflows is skipped.
    # No crop: each slice has its own box, and neighbours would be scaled apart. The 28 slices of a
    # real head, uncropped, are normalized to −0.14 ± 0.97; the weights expect 0 ± 1.
    # Cost, measured on a CPU: forward and backward of nine channels in float32 take 0.6 of the time
    # of `tonight`'s ResNeXt at 320 pixels, at 256 0.4 (timm: 0.64 at 224 on an RTX 3090); in mixed
    # precision they keep 0.18 GB an image, not 0.25. Derived: 4 to 6 hours on two T4, unless their
    # depthwise convolutions are slow, which `kit plan` measures. While training, a core reads 150
    # slices with neighbours a second; of `tonight` it reads 370.
    "modern": Recipe(
        name="modern",
        folds=20,
        train_folds=(0,),
        bag_classifier_epochs=1,
        bag_lstm_epochs=3,
        classifier=ClassifierConfig(
            architecture="convnext_small.in12k_ft_in1k_384",
            architecture_options={"drop_path_rate": 0.2},
            weights="pretrained",
            image_size=320,
            crop=False,
            neighbours=(-1, 0, 1),
            prior_bias=True,
            optimizer="adamw",
            learning_rate=1e-4,
            weight_decay=0.01,
            schedule="one-cycle",
            epochs=4,
            test_augmentation=False,
        ),
        lstm=LSTMConfig(hidden_size=1024, epochs=6, learning_rate=1e-4),
    ),
    # The published final, its cropped half: private score 0.044.
    "published": Recipe(
        name="published", kept_epochs=2, classifier=ClassifierConfig(weights="pretrained")
    ),
}


def find_recipe(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a name with some options changed, named as by `list_options`.

    If fewer epochs are trained than the recipe averages, all of them are averaged. Raises
    `InputError` for an unknown recipe or option, or values that do not go together.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe, changes = RECIPES[name], dict(changes or {})
    unknown = changes.keys() - list_options().keys()
    if unknown:
        raise InputError(f"a recipe has no option {min(unknown)!r}")
    for part in ("classifier", "lstm"):
        bagged = f"bag_{part}_epochs"
        epochs = changes.get(f"{part}.epochs", getattr(recipe, part).epochs)
        changes.setdefault(bagged, min(getattr(recipe, bagged), epochs))
    parts: dict[str, dict[str, Any]] = {"": {}, "classifier": {}, "lstm": {}}
    for key, value in changes.items():
        part, _, own = key.rpartition(".")
        parts[part][own] = value
    classifier = replace(recipe.classifier, **parts["classifier"])
    return replace(
        recipe, **parts[""], classifier=classifier, lstm=replace(recipe.lstm, **parts["lstm"])
    )


def list_options(kind: Any = Recipe, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """{"lstm.epochs": (int, help), …}: the options of a recipe with their types."""
    options, types = {}, get_type_hints(kind)
    for entry in fields(kind):
        name, type_ = prefix + entry.name, types[entry.name]
        if is_dataclass(type_):
            options.update(list_options(type_, name + "."))
        elif "help" in entry.metadata:
            options[name] = (type_, entry.metadata["help"])
    return options


def list_changes(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe that are not those of its name, as `find_recipe` takes them."""
    named = RECIPES.get(recipe.name)
    values = {name: (_read(recipe, name), named and _read(named, name)) for name in list_options()}
    return {
        name: mine for name, (mine, theirs) in values.items() if named is None or mine != theirs
    }


def _read(recipe: Recipe, name: str) -> Any:
    """The value of the option `name`."""
    part, _, own = name.rpartition(".")
    return getattr(getattr(recipe, part) if part else recipe, own)


def name_flag(name: str) -> str:
    """The flag of an option named as by `list_options`: `--lstm-hidden-size` for the LSTM's."""
    return "--" + name.replace(".", "-").replace("_", "-")


def format_flags(changes: dict[str, Any]) -> list[str]:
    """Changes of a recipe, as `find_recipe` takes them, as flags of `kit run`."""
    words = []
    for name, value in changes.items():
        flag = name_flag(name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, (list, tuple)):
            value = ",".join(
                ":".join(map(str, entry)) if isinstance(entry, list | tuple) else str(entry)
                for entry in value
            )
        words.append(f"{flag}={value}")
    return words


def to_dict(recipe: Recipe) -> dict:
    """The recipe as JSON holds it."""
    return {**asdict(recipe), "train_folds": list(recipe.train_folds)}


def from_dict(values: dict) -> Recipe:
    """The recipe that `to_dict` gave."""
    values = dict(values)
    classifier = ClassifierConfig(**values.pop("classifier"))
    lstm = LSTMConfig(**values.pop("lstm"))
    folds = tuple(values.pop("train_folds"))
    return Recipe(**values, train_folds=folds, classifier=classifier, lstm=lstm)
