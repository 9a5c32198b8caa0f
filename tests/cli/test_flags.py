"""The flags of a recipe: every field has one, and a value that cannot be read is refused."""

import pytest

from kit.cli.commands import main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import-embeddings", "run", "--fold", "0", "x.npz"], "'x.npz' is not NPZ,CSV"),
        (["run", "d", "--recipe", "demo", "--run", "r", "--train-folds", "a"], "not numbers"),
        (["plan", "d", "--recipe", "demo", "--classifier-image-size", "x"], "neither pixels nor"),
        (
            [
                "run",
                "d",
                "--recipe",
                "demo",
                "--run",
                "r",
                "--classifier-architecture-options",
                "[",
            ],
            "is not JSON",
        ),
    ],
)
def test_a_flag_that_cannot_be_read_is_told_why(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_field_of_a_recipe_is_a_flag(small_data, tmp_path, capsys):
    from kit.recipes import find_recipe
    from kit.runs.directory import Run, read_recipe

    flags = ["--lstm-epochs", "7", "--bag-lstm-epochs", "2", "--no-classifier-augment"]
    flags += ["--train-folds", "0,2", "--classifier-architecture-options", '{"layers": [1,1,1,2]}']
    code = main(
        ["index", str(small_data), "--recipe", "demo", "--run", str(tmp_path / "run"), *flags]
    )
    assert code == 0
    recipe = read_recipe(Run(tmp_path / "run"))
    expected = find_recipe(
        "demo",
        {
            "lstm.epochs": 7,
            "bag_lstm_epochs": 2,
            "classifier.augment": False,
            "train_folds": (0, 2),
            "classifier.architecture_options": {"layers": [1, 1, 1, 2]},
        },
    )
    assert recipe == expected
    assert "slices in" in capsys.readouterr().out
