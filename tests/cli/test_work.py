"""What a command does before a run's first stage: refuse, plan, settle the image size."""

from kit.cli.commands import main
from kit.files import read_json
from kit.runs import plan as planning


def test_a_size_is_chosen_for_hours_alone(small_data, tmp_path, capsys):
    words = ["--recipe", "demo", "--classifier-image-size", "auto", "--quiet"]
    for command in ("run", "index"):
        run = tmp_path / command
        assert main([command, str(small_data), "--run", str(run), *words]) == 1
        assert "auto needs --hours" in capsys.readouterr().err
        assert not run.exists()


def test_the_run_has_the_size_that_the_plan_chose(small_data, tmp_path, monkeypatch):
    measured = []
    measure = planning.measure_rates

    def count(paths, recipe, workers, seconds):
        measured.append(recipe.classifier.image_size)
        return measure(paths, recipe, workers, seconds)

    monkeypatch.setattr(planning, "measure_rates", count)
    words = ["index", str(small_data), "--run", str(tmp_path), "--recipe", "demo", "--quiet"]
    words += ["--lstm-hidden-size", "16", "--classifier-image-size", "auto", "--hours"]
    assert main([*words, "0.0001"]) == 0
    assert measured == [480, 384, 320, 256]
    for name in ("config.json", "plan.json"):
        assert read_json(tmp_path / name)["recipe"]["classifier"]["image_size"] == 256
    # It is the run's for good, however much time there is.
    assert main([*words, "1000"]) == 0
    assert measured == [480, 384, 320, 256]
    without = [word for word in words if word != "--hours"]
    assert main(without) == 0
