"""Weights, recipes and run files that a stranger made or a disk spoilt: a sentence, or right."""

import json
import resource
import shutil
import signal
from contextlib import contextmanager
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from conftest import copy_run
from hostile_files import (
    GREEDY,
    join_weights,
    split_weights,
    spoil_bytes,
    spoil_document,
    spoil_table,
    spoil_weights,
    write_document,
)

from kit import KitError, recipes
from kit.classifier import Classifier, ClassifierConfig, load_backbone, load_classifier
from kit.cli.commands import main
from kit.lstm import LSTMConfig, SequenceLSTM, load_lstm
from kit.recipes import SMALL_RESNEXT, find_recipe
from kit.runs.directory import Run, read_recipe
from kit.runs.prediction import load_model
from kit.training.checkpoints import save_weights

SECONDS = 30  # for one file, on a machine that others use


@contextmanager
def within_bounds():
    """Fail after `SECONDS`, and where the process has grown by a gigabyte."""

    def stop(*_):
        raise AssertionError(f"not done within {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_000_000, f"{grown} kB more"  # kilobytes


def read_spoilt(read, path):
    """What `read(path)` returns; None where it says in a sentence that names the file why not."""
    said = path.name
    with within_bounds():
        try:
            found = read(path)
        except (KitError, OSError) as error:
            found, said = None, str(error)
    assert path.name in said
    assert "\n" not in said
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Weights of a small classifier and a small LSTM, and what loads each."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture="resnext50_32x4d", architecture_options=SMALL_RESNEXT, image_size=32
    )
    save_weights(folder / "classifier.safetensors", Classifier(config))
    config = LSTMConfig(embedding_size=8, hidden_size=4, standardize=True)
    save_weights(folder / "lstm.safetensors", SequenceLSTM(config))
    return {"classifier": load_classifier, "lstm": load_lstm}, folder


@pytest.mark.parametrize("kind", ["classifier", "lstm"])
def test_weights_whose_header_lies_are_refused_by_name_or_load_as_they_are(models, tmp_path, kind):
    loaders, folder = models
    good = (folder / f"{kind}.safetensors").read_bytes()
    expected = loaders[kind](folder / f"{kind}.safetensors")
    path, tried, taken = tmp_path / f"{kind}.safetensors", 0, 0
    for name, content in spoil_weights(good):
        path.write_bytes(content)
        if (model := read_spoilt(loaders[kind], path)) is not None:
            taken += 1
            assert type(model.config) is type(expected.config), name
            state = model.state_dict()
            assert state.keys() == expected.state_dict().keys(), name
            assert all(torch.isfinite(value.float()).all() for value in state.values()), name
        tried += 1
    assert tried > 200
    assert taken < tried / 4


@pytest.mark.parametrize("kind", ["classifier", "lstm"])
@pytest.mark.parametrize("how", spoil_bytes())
def test_weights_that_are_no_weights_are_refused_by_name(models, tmp_path, kind, how):
    loaders, folder = models
    path = tmp_path / f"{kind}.safetensors"
    shutil.copy(folder / path.name, path)
    spoil_bytes()[how](path)
    assert not read_spoilt(loaders[kind], path) or how.startswith("flipped")


@pytest.mark.parametrize("number", range(len(GREEDY)))
def test_a_small_file_does_not_have_a_large_model_built(models, tmp_path, number):
    _, folder = models
    header, data = split_weights((folder / "classifier.safetensors").read_bytes())
    document = json.loads(header["__metadata__"]["kit"])
    document["config"].update(GREEDY[number])
    path = tmp_path / "small.safetensors"
    path.write_bytes(join_weights({**header, "__metadata__": {"kit": json.dumps(document)}}, data))
    assert not read_spoilt(load_classifier, path)


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("how", spoil_bytes())
def test_initial_weights_that_are_none_are_refused_by_name(tmp_path, ending, how):
    model = torch.nn.Linear(40, 50)
    path = tmp_path / f"initial{ending}"
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    spoil_bytes()[how](path)
    assert not read_spoilt(lambda path: load_backbone(model, path), path) or "flipped" in how


def test_a_recipe_with_other_values_is_refused_by_name_or_is_one(tmp_path):
    run = Run(tmp_path)
    good = {"kit": "0.2.0", "data": "data", "recipe": recipes.to_dict(find_recipe("demo"))}
    tried = 0
    for name, document in spoil_document(good):
        try:
            write_document(run.config, document)
        except (ValueError, UnicodeEncodeError):
            continue
        recipe = read_spoilt(lambda path: read_recipe(Run(path.parent)), run.config)
        if recipe is not None:
            assert recipes.from_dict(recipes.to_dict(recipe)) == recipe, name
            assert len(json.dumps(asdict(recipe))) < 3000, name
            # Nothing is trained yet: whatever was asked for is told at once to be missing.
            assert not read_spoilt(lambda path: load_model(path), run.path)
        tried += 1
    assert tried > 400


@pytest.mark.parametrize("how", spoil_bytes())
def test_a_configuration_that_is_none_is_refused_by_name(tmp_path, how):
    run = Run(tmp_path)
    write_document(run.config, {"recipe": recipes.to_dict(find_recipe("demo"))})
    spoil_bytes()[how](run.config)
    if how.startswith("a link to itself") or how == "lost":
        return  # as if there were none
    assert not read_spoilt(lambda path: read_recipe(Run(path.parent)), run.config)


# For each file of a run: the commands that read it.
COMMANDS = {
    "config.json": ("status", "ensemble"),
    "timings.json": ("ensemble", "report"),
    "slices.parquet": ("ensemble", "train-lstm"),
    "skipped.csv": ("ensemble", "embed"),
    "oof.parquet": ("explain",),
    "test.parquet": ("explain",),
    "metrics.json": ("submit",),
    "submission.csv": ("submit",),
    "fold0/classifier/history.json": ("train-classifier",),
    "fold0/embeddings/epoch1/store.json": ("ensemble", "train-lstm"),
    "fold0/embeddings/epoch1/ids.txt": ("ensemble",),
    "fold0/embeddings/epoch1/embeddings.npy": ("ensemble",),
    "fold0/embeddings/epoch1/logits.npy": ("ensemble",),
    "fold0/lstm/epoch1/history.json": ("train-lstm",),
    "fold0/lstm/epoch1/source.json": ("train-lstm",),
    "fold0/lstm/epoch1/predictions2.parquet": ("ensemble",),
}


def call(command: str, run: Run, series: str) -> list[str]:
    words = {"submit": [str(run.submission), "--message", "x", "--dry-run"]}
    words["explain"] = [str(run), series]
    return [command, *words.get(command, [str(run)]), "--quiet"]


@pytest.fixture(scope="module")
def own_run(small_run, tmp_path_factory):
    """A copy of the small run, each file of which is spoilt and restored in turn."""
    return copy_run(small_run, tmp_path_factory.mktemp("hostile") / "run")


def try_commands(name, run, small_run, change, capsys) -> None:
    """Spoil the file `name`; each command must say so in one sentence, or do its work right."""
    series = pd.read_parquet(small_run.oof)["series"].iloc[0]
    path = run.path / name
    for command in COMMANDS[name]:
        try:
            change(path)
            with within_bounds():
                code = main(call(command, run, series))
        finally:
            restore(run, small_run, path)
        said = capsys.readouterr().err
        assert code in (0, 1)
        if code:
            assert said.startswith("kit: ")
            assert said.count("\n") == 1
            assert path.name in said or path.parent.name in said
        else:
            assert "Traceback" not in said


def restore(run, small_run, spoilt) -> None:
    """Bring every file of the run back."""
    if spoilt.is_dir() and not spoilt.is_symlink():
        shutil.rmtree(spoilt)
    spoilt.unlink(missing_ok=True)
    for good in small_run.path.rglob("*.*"):
        path = run.path / good.relative_to(small_run.path)
        if good.is_file() and (not path.exists() or path.read_bytes() != good.read_bytes()):
            shutil.copy(good, path)


@pytest.mark.parametrize("how", spoil_bytes())
@pytest.mark.parametrize("name", COMMANDS)
def test_a_spoilt_file_of_a_run_is_named(name, how, own_run, small_run, capsys):
    try_commands(name, own_run, small_run, spoil_bytes()[how], capsys)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith("json")])
def test_a_document_of_a_run_with_other_values_is_named(name, own_run, small_run, capsys):
    document = json.loads((small_run.path / name).read_text())
    for how, changed in spoil_document(document):
        if "400" in how:
            continue
        try_commands(
            name, own_run, small_run, lambda path, made=changed: write_document(path, made), capsys
        )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith("parquet")])
def test_a_table_of_a_run_with_other_columns_is_named(name, own_run, small_run, capsys):
    for change in spoil_table(small_run.path / name).values():
        try_commands(name, own_run, small_run, change, capsys)
