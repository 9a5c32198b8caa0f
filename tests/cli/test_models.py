"""`kit fetch` and `kit import-model`: what they print, and what they need."""

import json

import pytest
from command_line import check_told_at_once
from conftest import shared
from released_models import shrink_ianpan, write_ianpan

from kit.classifier import load_classifier
from kit.cli.commands import main
from kit.runs.directory import Run


def test_the_list_names_licence_size_source_labels_and_training_data(capsys):
    assert main(["fetch", "--list"]) == 0
    text = capsys.readouterr().out
    for words in ("ianpan", "MIT", "about 130 MB", "huggingface.co/ianpan", "661,118 slices",
                  "e6d89c2", "appian", "kit import-model"):  # fmt: skip
        assert words in text
    assert main(["fetch", "--list", "--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} >= {"ianpan", "appian"}


def test_a_name_and_a_place_are_needed(tmp_path, capsys):
    assert main(["fetch"]) == 1
    assert "needs a NAME and --out MODEL" in capsys.readouterr().err
    assert main(["fetch", "nothing", "--out", str(tmp_path / "model")]) == 1
    assert "kit fetch has no 'nothing'" in capsys.readouterr().err


def test_an_import_prints_where_the_model_is_from_and_what_comes_next(
    tmp_path, monkeypatch, capsys
):
    shared("golden/released.py")
    shrink_ianpan(monkeypatch)
    release, out = write_ianpan(tmp_path / "release"), tmp_path / "model"
    assert main(["import-model", str(release), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Model: ianpan, huggingface.co/ianpan/ct-head-hemorrhage-detection" in text
    assert f"kit predict SCANS --run {out}" in text
    flags = ["--out", str(tmp_path / "part"), "--classifier-only", "--json", "--opt-level", "O1"]
    assert main(["import-model", str(release), *flags]) == 0
    for folder, level in ((out, "O0"), (tmp_path / "part", "O1")):
        weights = Run(folder).classifier("all") / "epoch1.safetensors"
        assert load_classifier(weights).config.opt_level == level
    assert json.loads(capsys.readouterr().out)["provenance"]["complete"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fetch", "nothing", "--out", "x"], "kit fetch has no 'nothing'; it has ianpan"),
        (["import-model", "gone", "--out", "x"], "kit: gone: No such file or directory"),
        (["import-model", "kit", "--out", "kit"], "kit: kit exists: name another\n"),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(words, said):
    check_told_at_once(words, 1, said)


def test_the_state_of_a_model_is_the_command_that_uses_it(tmp_path, monkeypatch, capsys):
    shrink_ianpan(monkeypatch)
    write_ianpan(tmp_path / "release")
    for flags, following in (
        ([], f"  kit predict SCANS --run {tmp_path}/0 --out predictions.csv"),
        (["--classifier-only"], f"  kit run DATA --recipe single --run {tmp_path}/1   (trains"),
    ):
        out = tmp_path / str(len(flags))
        assert main(["import-model", str(tmp_path / "release"), "--out", str(out), *flags]) == 0
        capsys.readouterr()
        assert main(["status", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{out}: a model, not a run with stages; ready for"
        assert lines[1].startswith(following)
