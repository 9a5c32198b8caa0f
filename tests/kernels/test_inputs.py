"""The inputs of a notebook, in both mount layouts, and earlier runs restored from them."""

import os
from pathlib import Path

import pytest
from notebook_session import Session

from kit.competition import SLUG
from kit.kernels import cells as kernels
from kit.kernels.inputs import find_data, list_inputs, restore_run
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run, read_recipe
from kit.runs.export import MANIFEST


@pytest.mark.parametrize("layout", ["new", "old"])
def test_inputs_are_found_without_looking_into_them(layout, weights, tmp_path, monkeypatch):
    session = Session(tmp_path, layout)
    deep = tmp_path / "deep"
    (deep / "stage_2_test").mkdir(parents=True)
    data = session.mount("competitions", SLUG, deep)
    inputs = [
        session.mount("datasets", "hemorrhage-weights", weights),
        session.mount("notebooks", "train-classifier", deep),
    ]
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path)), scandir(path))[1])
    assert list_inputs(session.input) == sorted(inputs)
    assert kernels.find_marked(MANIFEST, session.input) == inputs[:1]
    assert find_data(session.input) == data
    assert listed
    inside = [
        path for path in listed for place in [data, *inputs] if place in [path, *path.parents]
    ]
    assert inside == []


def test_a_run_continues_only_from_those_with_its_own_settings(tmp_path, capsys):
    recipes = [find_recipe("demo", {"seed": seed}) for seed in (0, 1)]
    for name, recipe in zip("ab", recipes, strict=True):
        begin_run(Run(tmp_path / name), recipe, tmp_path)
    run = Run(tmp_path / "run")
    restore_run(run, recipes[1], [tmp_path / "a", tmp_path / "b"])
    assert read_recipe(run) == recipes[1]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/a was trained with other settings: this run does not continue from it.",
        f"Continuing from {tmp_path}/b",
    ]


def test_what_was_read_only_is_restored_to_be_written(tmp_path):
    earlier = tmp_path / "earlier"
    (earlier / "fold0" / "embeddings").mkdir(parents=True)
    begin_run(Run(earlier), recipe := find_recipe("demo"), tmp_path)
    (earlier / "fold0" / "embeddings" / "embeddings.npy").write_bytes(b"many")
    for path in (earlier / "config.json", earlier / "fold0", earlier):
        path.chmod(0o555)
    run = Run(tmp_path / "run")
    restore_run(run, recipe, [earlier], ("embeddings",))
    assert run.config.stat().st_mode & 0o200
    assert (run.path / "fold0").stat().st_mode & 0o200
    assert not (run.path / "fold0" / "embeddings").exists()
