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
from kit.competition import LABELS, read_submission
from kit.embeddings.store import EmbeddingStore
from kit.lstm import LSTMConfig, SequenceLSTM, load_lstm
from kit.recipes import SMALL_RESNEXT, find_recipe
from kit.runs.directory import Run, read_document, read_recipe
from kit.runs.export import MANIFEST, check_export, read_prior
from kit.runs.metrics import read_out_of_fold
from kit.runs.prediction import load_model
from kit.runs.scoring import read_metrics
from kit.runs.status import read_epochs
from kit.runs.tables import read_members, read_predicted, read_skipped, read_slices
from kit.runs.timings import read_timings
from kit.training.checkpoints import save_weights

SECONDS = 60  # for one file, on a machine that others use


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


def read_scores(run):
    read_metrics(run)
    return read_out_of_fold(run.metrics) is not None


# For each file of a run: what reads it, and a command that does and is soon done.
READERS = {
    "config.json": (read_recipe, "status"),
    "timings.json": (read_timings, "ensemble"),
    "slices.parquet": (read_slices, "ensemble"),
    "skipped.csv": (lambda run: read_skipped(run.skipped), "ensemble"),
    "oof.parquet": (lambda run: read_predicted(run.oof), "explain"),
    "test.parquet": (lambda run: read_predicted(run.test), "explain"),
    "metrics.json": (read_scores, "submit"),
    "submission.csv": (lambda run: read_submission(run.submission), "submit"),
    "fold0/classifier/history.json": (lambda run: read_epochs(run.classifier(0)), ""),
    "fold0/embeddings/epoch1/store.json": (lambda run: EmbeddingStore(run.store(0, 1)), "ensemble"),
    "fold0/embeddings/epoch1/ids.txt": (lambda run: EmbeddingStore(run.store(0, 1)), "ensemble"),
    "fold0/embeddings/epoch1/embeddings.npy": (
        lambda run: EmbeddingStore(run.store(0, 1)),
        "ensemble",
    ),
    "fold0/embeddings/epoch1/logits.npy": (lambda run: EmbeddingStore(run.store(0, 1)), "ensemble"),
    "fold0/lstm/epoch1/history.json": (lambda run: read_epochs(run.lstm(0, 1)), ""),
    "fold0/lstm/epoch1/source.json": (
        lambda run: read_document(run.lstm(0, 1) / "source.json"),
        "",
    ),
    "fold0/lstm/epoch1/predictions2.parquet": (
        lambda run: list(read_members([run.predictions(0, 1, 2)])),
        "ensemble",
    ),
}


@pytest.fixture(scope="module")
def own_run(small_run, tmp_path_factory):
    """A copy of the small run, each file of which is spoilt and restored in turn."""
    return copy_run(small_run, tmp_path_factory.mktemp("hostile") / "run")


def list_changes(path):
    """(name, change) for every kind of spoiling that fits the file."""
    yield from spoil_bytes().items()
    if path.suffix == ".parquet":
        yield from spoil_table(path).items()
    if path.suffix == ".json":
        for name, made in spoil_document(json.loads(path.read_text())):
            yield name, lambda path, made=made: write_document(path, made)


@pytest.mark.parametrize("name", READERS)
def test_a_spoilt_file_of_a_run_is_named_or_does_no_harm(name, own_run, small_run, capsys):
    reader, command = READERS[name]
    path, good, tried, carried_out = own_run.path / name, small_run.path / name, 0, 0
    for how, change in list_changes(good):
        shutil.copy(good, path)
        try:
            change(path)
        except ValueError:  # what JSON cannot hold
            continue
        tried += 1
        with within_bounds():
            try:
                reader(own_run)
                said = None
            except (KitError, OSError) as error:
                said = str(error)
        assert said is None or path.name in said or str(path.parent) in said, how
        # What is read although it is spoilt, and now and then what is not, is worked with.
        if command and carried_out < 3 and (said is None or tried == 30):
            carried_out += 1
            carry_out(command, own_run, small_run, capsys)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
    shutil.copy(good, path)
    assert tried >= 31


def carry_out(command, run, small_run, capsys) -> None:
    """The command must say in one sentence what is wrong, or do its work."""
    series = pd.read_parquet(small_run.oof)["series"].iloc[0]
    words = {"submit": [str(run.submission), "--message", "x", "--dry-run"]}
    words["explain"] = [str(run), series]
    with within_bounds():
        code = main([command, *words.get(command, [str(run)]), "--quiet"])
    said = capsys.readouterr().err
    assert code in (0, 1)
    assert "Traceback" not in said
    assert code == 0 or (said.startswith("kit: ") and said.count("\n") == 1)
    for good in small_run.path.glob("*.*"):  # what the command wrote
        shutil.copy(good, run.path)


def test_a_spoilt_manifest_is_named(tmp_path, capsys):
    run = Run(tmp_path)
    good = {"prior": dict.fromkeys(LABELS, 0.1), "sha256": {"config.json": "0" * 64}}
    changes = [
        lambda path, made=made: write_document(path, made) for _, made in spoil_document(good)
    ]
    for change in (*spoil_bytes().values(), *changes):
        path = tmp_path / MANIFEST
        write_document(path, good)
        try:
            change(path)
        except ValueError:
            continue
        if path.exists():
            prior = read_spoilt(lambda path: read_prior(run), path)
            assert prior is None or ((prior >= 0) & (prior <= 1)).all()
        read_spoilt(lambda path: check_export(path.parent), path.with_name(tmp_path.name))
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
