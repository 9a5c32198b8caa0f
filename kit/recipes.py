"""Named configurations. A recipe is data: what is trained on which folds, and what is averaged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, get_type_hints

from kit.classifier import ClassifierConfig
from kit.lstm import LSTMConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes a run. Saved as `config.json`; every field is a flag of `kit run`."""

    name: str
    folds: Annotated[int, "parts into which the patients are split"] = 5
    train_folds: Annotated[
        tuple[int, ...], "parts held out in turn, as 0,1,2; empty: one model on all data"
    ] = (0, 1, 2)
    bag_classifier_epochs: Annotated[int, "last classifier epochs that are embedded"] = 5
    bag_lstm_epochs: Annotated[int, "last LSTM epochs that are averaged"] = 12
    seed: Annotated[int, "of folds, weights, batches and augmentation"] = 0
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    lstm: LSTMConfig = field(default_factory=LSTMConfig)

    def __post_init__(self):
        for given, most, name in (
            (self.bag_classifier_epochs, self.classifier.epochs, "bag_classifier_epochs"),
            (self.bag_lstm_epochs, self.lstm.epochs, "bag_lstm_epochs"),
        ):
            if not 1 <= given <= most:
                raise ValueError(f"{name} is {given}; it must be 1 to the {most} trained epochs")
        if not set(self.train_folds) <= set(range(self.folds)):
            raise ValueError(f"train_folds {self.train_folds} are not among 0 to {self.folds - 1}")


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
    # The cheapest published route: private score 0.04607.
    "single": Recipe(
        name="single",
        train_folds=(),
        bag_classifier_epochs=1,
        classifier=ClassifierConfig(weights="pretrained", epochs=3, test_augmentation=False),
    ),
    # The published final, its cropped half: private score 0.044.
    "published": Recipe(name="published", classifier=ClassifierConfig(weights="pretrained")),
}


def find_recipe(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a name with some fields changed, named as by `name_fields`.

    Where fewer epochs are asked for than the recipe averages, all of them are.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe, changes = RECIPES[name], dict(changes or {})
    for part in ("classifier", "lstm"):
        kept = f"bag_{part}_epochs"
        epochs = changes.get(f"{part}.epochs", getattr(recipe, part).epochs)
        changes.setdefault(kept, min(getattr(recipe, kept), epochs))
    nested = {}
    for part in ("classifier", "lstm"):
        prefix = part + "."
        own = {
            k.removeprefix(prefix): changes.pop(k) for k in list(changes) if k.startswith(prefix)
        }
        nested[part] = replace(getattr(recipe, part), **own)
    return replace(recipe, **nested, **changes)


def name_fields(kind: type = Recipe, prefix: str = "") -> dict[str, tuple[type, str]]:
    """{"lstm.epochs": (int, help), …}: every field of a recipe that may be changed."""
    named = {}
    for entry in fields(kind):
        hint = _find_annotation(kind, entry.name)
        if is_dataclass(hint):
            named.update(name_fields(hint, f"{prefix}{entry.name}."))
        elif hasattr(hint, "__metadata__") and prefix + entry.name not in _DERIVED:
            named[prefix + entry.name] = (hint.__origin__, hint.__metadata__[0])
    return named


# Set by the pipeline, from the recipe's seed and the classifier.
_DERIVED = ("classifier.seed", "lstm.seed", "lstm.embedding_size")


def _find_annotation(kind: type, name: str):
    """The field's type with its help, which a subclass that only changes the default lacks."""
    hints = [get_type_hints(base, include_extras=True).get(name) for base in kind.__mro__[:-1]]
    return next((hint for hint in hints if hasattr(hint, "__metadata__")), hints[0])


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
