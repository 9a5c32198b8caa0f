"""The inputs of a notebook, in both mount layouts, and earlier runs restored from them."""

import os
from pathlib import Path

import pytest
from notebook_session import Session

from kit.competition import SLUG
from kit.kernels import cells as kernels
from kit.kernels.inputs import KernelError, find_data, list_inputs, restore_run
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run
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


def test_outputs_of_different_recipes_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        begin_run(Run(tmp_path / name), find_recipe("demo", {"seed": seed}), tmp_path)
    with pytest.raises(KernelError, match="b hold different runs: detach the one"):
        restore_run(Run(tmp_path / "run"), [tmp_path / "a", tmp_path / "b"])


def test_what_was_read_only_is_restored_to_be_written(tmp_path):
    earlier = tmp_path / "earlier"
    (earlier / "fold0" / "embeddings").mkdir(parents=True)
    begin_run(Run(earlier), find_recipe("demo"), tmp_path)
    (earlier / "fold0" / "embeddings" / "embeddings.npy").write_bytes(b"many")
    for path in (earlier / "config.json", earlier / "fold0", earlier):
        path.chmod(0o555)
    run = Run(tmp_path / "run")
    restore_run(run, [earlier], ("embeddings",))
    assert run.config.stat().st_mode & 0o200
    assert (run.path / "fold0").stat().st_mode & 0o200
    assert not (run.path / "fold0" / "embeddings").exists()
