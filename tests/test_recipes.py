"""Recipes: their options as flags, and configurations written by earlier versions."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import shared

from kit import InputError
from kit.cli.commands import make_parser
from kit.cli.flags import read_recipe
from kit.images import read_image
from kit.lstm import LSTMConfig
from kit.recipes import (
    RECIPES,
    find_recipe,
    format_flags,
    from_dict,
    list_changes,
    list_options,
    to_dict,
)
from kit.runs.directory import list_classifier_epochs, list_lstm_epochs
from kit.training.config import TrainingConfig, learning_rate_at

CHANGES = {
    "folds": 3,
    "train_folds": (0, 2),
    "classifier.weights": "",
    "classifier.augment": False,
    "classifier.crop": True,
    "classifier.neighbours": (-1, 0, 1),
    "classifier.windows": ((40, 80), (-600, 1500)),
    "classifier.mean": (0.25, 0.5),
    "classifier.std": (0.5, 1e-3),
    "classifier.learning_rate": 1e-4,
    "classifier.architecture_options": {"layers": [1, 1], "name": "a b"},
    "lstm.hidden_size": 12,
}


def test_flags_of_changes_are_read_back():
    words = ["run", "data", "--run", "run", "--recipe", "blog", *format_flags(CHANGES)]
    options = make_parser(words).parse_args(words)
    assert read_recipe(options) == find_recipe("blog", CHANGES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_changes_of_a_recipe_make_it_again(name):
    assert list_changes(RECIPES[name]) == {}
    for changes in (CHANGES, {"lstm.epochs": 5, "bag_lstm_epochs": 1}):
        recipe = find_recipe(name, changes)
        assert find_recipe(name, list_changes(recipe)) == recipe


def test_options_have_help_and_what_the_program_sets_is_none():
    options = list_options()
    assert all(text for _, text in options.values())
    fields = {f"{part}.{name}" for part in ("classifier", "lstm")
              for name in asdict(getattr(RECIPES["demo"], part))}  # fmt: skip
    derived = {"classifier.seed", "lstm.seed", "lstm.embedding_size"}
    assert {name for name in options if "." in name} == fields - derived


def test_a_subclass_that_changes_a_default_keeps_the_help():
    assert (TrainingConfig().epochs, LSTMConfig().epochs) == (5, 12)
    options = list_options()
    assert (
        options["lstm.epochs"] == options["classifier.epochs"] == (int, options["lstm.epochs"][1])
    )


def test_a_recipe_is_read_as_it_was_written():
    for recipe in RECIPES.values():
        assert from_dict(to_dict(recipe)) == recipe


def test_a_configuration_of_version_0_1_is_read():
    """`config.json` as version 0.1.0 wrote it for the blog recipe."""
    training = {"optimizer": "adam", "learning_rate_decay": 0.95, "opt_level": "O1", "seed": 0}
    classifier = {
        **training, "epochs": 5, "batch_size": 64, "learning_rate": 2e-05, "schedule": "constant",
        "weight_decay": 0.0, "architecture": "resnext101_32x8d.fb_wsl_ig1b_ft_in1k",
        "architecture_options": {}, "weights": "pretrained", "image_size": 480, "crop": True,
        "repair": True, "augment": True, "prior_bias": False, "test_augmentation": True,
    }  # fmt: skip
    lstm = {
        **training, "epochs": 10, "batch_size": 4, "learning_rate": 0.0001, "weight_decay": 0.01,
        "schedule": "exponential", "embedding_size": 2048, "hidden_size": 2048, "packed": True,
        "deltas": True, "embedding_dropout": 0.0, "standardize": False,
    }  # fmt: skip
    recipe = {"name": "blog", "folds": 5, "train_folds": [0, 1], "bag_classifier_epochs": 1,
              "bag_lstm_epochs": 1, "seed": 0, "classifier": classifier, "lstm": lstm}  # fmt: skip
    blog = RECIPES["blog"]
    assert from_dict(recipe) == replace(blog, lstm=replace(blog.lstm, weight_decay=0.01))
    again = to_dict(from_dict(recipe))
    for part, values in (("classifier", classifier), ("lstm", lstm)):
        assert values.items() <= again[part].items()  # what is newer has its default
    assert {**again, "classifier": classifier, "lstm": lstm} == {
        **recipe,
        "kept_epochs": 12,
        "average_weights": False,
    }


# What the authors' write-ups and scripts state; weight decay is the scripts' default.
PUBLISHED = {
    "folds": 5,
    "train_folds": (0, 1, 2),
    "bag_classifier_epochs": 5,
    "bag_lstm_epochs": 12,
    "classifier.architecture": "resnext101_32x8d.fb_wsl_ig1b_ft_in1k",
    "classifier.architecture_options": {},
    "classifier.weights": "pretrained",
    "classifier.image_size": 480,
    "classifier.crop": True,
    "classifier.augment": True,
    "classifier.prior_bias": False,
    "classifier.test_augmentation": True,
    "classifier.epochs": 5,
    "classifier.batch_size": 64,
    "classifier.optimizer": "adam",
    "classifier.learning_rate": 2e-5,
    "classifier.schedule": "constant",
    "classifier.weight_decay": 0.0,
    "classifier.opt_level": "O1",
    "lstm.hidden_size": 2048,
    "lstm.embedding_size": 2048,
    "lstm.deltas": True,
    "lstm.embedding_dropout": 0.0,
    "lstm.standardize": False,
    "lstm.epochs": 12,
    "lstm.batch_size": 4,
    "lstm.optimizer": "adam",
    "lstm.learning_rate": 1e-5,
    "lstm.schedule": "exponential",
    "lstm.learning_rate_decay": 0.95,
    "lstm.weight_decay": 0.0,
    "lstm.opt_level": "O1",
}
# In what the blog's account and the cheapest route differ from that.
DIFFERENCES = {
    "published": {},
    "blog": {
        "train_folds": (0, 1),
        "bag_classifier_epochs": 1,
        "bag_lstm_epochs": 1,
        "lstm.epochs": 10,
        "lstm.learning_rate": 1e-4,
    },
    "single": {
        "train_folds": (),
        "bag_classifier_epochs": 3,
        "classifier.epochs": 3,
        "classifier.test_augmentation": False,
    },
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_published_recipes_hold_the_published_values(name):
    recipe, expected = asdict(RECIPES[name]), {**PUBLISHED, **DIFFERENCES[name]}
    for field, value in expected.items():
        part, _, own = field.rpartition(".")
        assert (recipe[part] if part else recipe)[own] == value, field


def test_the_cheapest_route_averages_an_lstm_on_each_classifier_epoch():
    assert list(list_classifier_epochs(RECIPES["single"])) == [1, 2, 3]
    assert list(list_lstm_epochs(RECIPES["single"])) == list(range(1, 13))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("magic", {}, "no recipe 'magic'"),
        ("demo", {"lstm.size": 3}, "no option 'lstm.size'"),
        ("demo", {"folds": 1, "train_folds": (0,)}, "folds is 1"),
        ("demo", {"folds": 10**9}, "folds is 1000000000; it must be at most 100"),
        ("demo", {"train_folds": (1, 1)}, "name a fold twice"),
        ("demo", {"seed": -1}, "seed is -1; it must be at least 0"),
        ("demo", {"train_folds": (3,)}, "are not among 0 to 2"),
        ("demo", {"lstm.batch_size": 0}, "batch_size is 0"),
        ("demo", {"lstm.epochs": 0}, "epochs is 0"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(name, changes, reason):
    with pytest.raises(InputError, match=reason):
        find_recipe(name, changes)


def test_a_seed_is_one_of_the_recipe_alone():
    assert "seed" in list_options()
    assert replace(RECIPES["demo"], seed=3).classifier.seed == 0


def test_fewer_epochs_than_a_recipe_averages_are_all_averaged():
    recipe = find_recipe("published", {"lstm.epochs": 8, "classifier.epochs": 3})
    assert (recipe.bag_lstm_epochs, recipe.bag_classifier_epochs) == (8, 3)
    assert find_recipe("published", {"lstm.epochs": 20}).bag_lstm_epochs == 12
    with pytest.raises(ValueError, match="bag_lstm_epochs is 9; it must be 1 to the 8"):
        find_recipe("published", {"lstm.epochs": 8, "bag_lstm_epochs": 9})


def test_tonight_fits_one_session_on_two_t4():
    recipe = find_recipe("tonight")
    assert recipe.train_folds == (0,)
    assert 1 / recipe.folds == 0.05  # held out for the score
    classifier, lstm = recipe.classifier, recipe.lstm
    assert classifier.architecture == "resnext101_32x8d.fb_wsl_ig1b_ft_in1k"
    assert (classifier.weights, classifier.image_size, classifier.epochs) == ("pretrained", 320, 3)
    assert (classifier.opt_level, classifier.precision) == ("O1", "float16")  # a T4 has no bfloat16
    assert not classifier.test_augmentation
    assert (lstm.hidden_size, recipe.bag_classifier_epochs) == (1024, 2)
    assert 1 < recipe.bag_lstm_epochs < lstm.epochs


def test_modern_differs_from_tonight_in_the_classifier_alone():
    modern, tonight = find_recipe("modern"), find_recipe("tonight")
    assert (modern.folds, modern.train_folds) == (tonight.folds, tonight.train_folds)
    assert (modern.lstm, modern.seed) == (tonight.lstm, tonight.seed)
    classifier = modern.classifier
    assert classifier.architecture == "convnext_small.in12k_ft_in1k_384"
    assert (classifier.channels, classifier.image_size) == (9, tonight.classifier.image_size)
    assert (classifier.opt_level, classifier.precision) == ("O1", "float16")
    assert (classifier.optimizer, modern.bag_classifier_epochs) == ("adamw", 1)
    # The highest rate comes after three tenths of the steps; it begins at 4 % and ends near 0.
    steps = 1000
    rates = [learning_rate_at(classifier, e, s, steps) for e in range(1, 5) for s in range(steps)]
    assert (np.argmax(rates), max(rates)) == (1200, 1e-4)
    assert rates[0] == pytest.approx(4e-6)
    assert 0 < rates[-1] < 1e-10
    assert all(np.diff(rates[:1200]) > 0)
    assert all(np.diff(rates[1200:]) < 0)


def test_the_weights_of_modern_get_the_values_that_they_expect():
    """About 0 ± 1 in every window, as ImageNet's channels are: over a real head, uncropped."""
    folder = shared("data/dcm_qa_ct/GE")
    config = find_recipe("modern").classifier
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    values = np.stack([read_image(path, config) for path in paths]) / 255
    normalized = (values - np.array(config.mean)) / np.array(config.std)
    assert len(paths) == 28
    assert np.abs(normalized.mean(axis=(0, 1, 2)) + 0.14).max() < 0.02
    assert np.abs(normalized.std(axis=(0, 1, 2)) - 0.97).max() < 0.04
