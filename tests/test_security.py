"""Nothing that is given is executed, and nothing about the patient gets out."""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from dicom_files import write_slice

from kit.classifier import Classifier, ClassifierConfig
from kit.cli.commands import main
from kit.embeddings import EmbeddingStore
from kit.lstm import LSTMConfig, SequenceLSTM
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run
from kit.runs.imported import import_published
from kit.slices.folds import assign_folds
from kit.slices.index import index_slices
from kit.training.checkpoints import save_weights


class Payload:
    """Unpickled, it makes a file: what a malicious file would do worse."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a file was executed"


def evil_bytes(marker: Path) -> bytes:
    return pickle.dumps({"state_dict": {"conv1.weight": Payload(marker)}})


def evil_array(marker: Path) -> np.ndarray:
    return np.array([Payload(marker)] * 3, dtype=object)


def evil_npy(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, evil_array(marker), allow_pickle=True)
    return buffer.getvalue()


def test_the_payload_of_these_tests_works(tmp_path):
    pickle.loads(evil_bytes(tmp_path / "executed"))  # noqa: S301
    assert (tmp_path / "executed").exists()
    np.load(io.BytesIO(evil_npy(tmp_path / "again")), allow_pickle=True)
    assert (tmp_path / "again").exists()


def write_torch(path: Path, marker: Path, **options):
    torch.save({"state_dict": {"conv1.weight": Payload(marker)}}, path, **options)


def write_object_arrays(path: Path, marker: Path):
    with open(path, "wb") as file:
        np.savez(file, evil_array(marker), allow_pickle=True)


WEIGHTS = {
    "zipped.pth": write_torch,
    "legacy.pth": lambda path, marker: write_torch(
        path, marker, _use_new_zipfile_serialization=False
    ),
    "bare.pt": lambda path, marker: path.write_bytes(evil_bytes(marker)),
    "arrays.bin": write_object_arrays,
    "renamed.safetensors": write_torch,
}
SMALL = {"classifier.architecture": "resnet18", "classifier.image_size": 32}


@pytest.mark.parametrize("name", WEIGHTS)
def test_malicious_weights_are_refused_and_do_nothing(tmp_path, marker, name):
    path = tmp_path / name
    WEIGHTS[name](path, marker)
    config = ClassifierConfig(architecture="resnet18", weights=str(path))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        Classifier(config, load=True)
    assert str(caught.value).startswith(f"{path}: not a ")


def test_malicious_published_embeddings_are_refused_and_do_nothing(tmp_path, marker):
    (tmp_path / "ids.csv").write_text("SOPInstanceUID\na\nb\nc\n")
    write_object_arrays(tmp_path / "objects.npz", marker)
    with zipfile.ZipFile(tmp_path / "pickle.npz", "w") as archive:
        archive.writestr("arr_0.npy", evil_bytes(marker))
    (tmp_path / "bare.npz").write_bytes(evil_bytes(marker))
    for name in ("objects.npz", "pickle.npz", "bare.npz"):
        with pytest.raises(ValueError, match=name):
            import_published([(tmp_path / name, tmp_path / "ids.csv")], tmp_path / "store")
        assert not (tmp_path / "store" / "store.json").exists()


@pytest.mark.parametrize("name", ["embeddings.npy", "logits.npy"])
@pytest.mark.parametrize("make", [evil_npy, evil_bytes])
def test_a_malicious_store_is_refused_and_does_nothing(tmp_path, marker, name, make):
    store = tmp_path / "store"
    store.mkdir()
    np.save(store / "embeddings.npy", np.zeros((3, 4), np.float16))
    np.save(store / "logits.npy", np.zeros((3, 6), np.float32))
    (store / "ids.txt").write_text("a\nb\nc\n")
    (store / "store.json").write_text('{"failed": {}, "weights_sha256": ""}')
    assert len(EmbeddingStore(store).embeddings) == 3
    (store / name).write_bytes(make(marker))
    with pytest.raises(ValueError, match="not an embedding store"):
        EmbeddingStore(store)


@pytest.fixture
def run(untrained, tmp_path):
    """A copy of `untrained`, to be spoilt."""
    shutil.copytree(untrained.path, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run whose weights are random: what `predict` needs, no more."""
    recipe = find_recipe("demo", {"train_folds": (0,), "bag_lstm_epochs": 1, "lstm.hidden_size": 8})
    run = Run(tmp_path_factory.mktemp("security") / "run")
    begin_run(run, recipe, run.path.parent / "data")
    torch.manual_seed(0)
    model = Classifier(recipe.classifier)
    directory = run.classifier(0)
    directory.mkdir(parents=True)
    save_weights(directory / f"epoch{recipe.classifier.epochs}.safetensors", model)
    size = model.embedding_size
    directory = run.lstm(0, recipe.classifier.epochs)
    directory.mkdir(parents=True)
    config = LSTMConfig(embedding_size=size, hidden_size=8, standardize=True, opt_level="O0")
    save_weights(directory / f"epoch{recipe.lstm.epochs}.safetensors", SequenceLSTM(config))
    return run


def write_scans(folder: Path, count: int = 3, **tags) -> Path:
    stored = np.random.default_rng(1).integers(-1000, 100, (64, 64)).astype(np.int16)
    for z in range(count):
        write_slice(folder / f"{z}.dcm", stored, ImagePositionPatient=[0, 0, 5 * z], **tags)
    return folder


def test_a_malicious_run_directory_does_nothing(run, tmp_path, marker, capsys):
    scans = write_scans(tmp_path / "scans")
    call = ["predict", str(scans), "--run", str(run.path), "--overwrite"]
    call += ["--out", str(tmp_path / "out.csv")]
    assert main([*call, "--quiet", "--workers", "0"]) == 0
    files = sorted(path for path in run.path.rglob("*") if path.suffix in (".json", ".safetensors"))
    assert len(files) == 3
    for file in files:
        good = file.read_bytes()
        for evil in (evil_bytes(marker), evil_npy(marker)):
            file.write_bytes(evil)
            assert main([*call, "--quiet", "--workers", "0"]) == 1
            error = capsys.readouterr().err
            assert error.startswith("kit: ")
            assert "Traceback" not in error
            assert file.name in error
        file.write_bytes(good)


def test_malicious_tables_do_nothing(run, tmp_path, marker, capsys):
    run.slices.write_bytes(evil_bytes(marker))
    assert main(["train-classifier", str(run.path), "--quiet"]) == 1
    assert capsys.readouterr().err.startswith("kit: ")
    table = tmp_path / "folds.csv"
    table.write_bytes(evil_bytes(marker))
    slices, _ = index_slices(write_scans(tmp_path / "scans"), 1)
    labels = dict.fromkeys(("epidural", "intraparenchymal", "intraventricular", "subarachnoid",
                            "subdural", "any"), 0)  # fmt: skip
    with pytest.raises(ValueError, match=r"folds\.csv"):
        assign_folds(slices.assign(split="train", **labels), 2, fold_table=table)


SECRETS = {
    "PatientName": "Geheimnis^Anna",
    "PatientBirthName": "YAMADA TARO",
    "PatientBirthDate": "19410203",
    "StudyDate": "19990807",
    "SeriesDate": "19990808",
    "ContentDate": "19990809",
    "AcquisitionDateTime": "19990806121314",
    "AccessionNumber": "ACC77713",
    "InstitutionName": "Klinikum Nirgendwo",
    "ReferringPhysicianName": "Doktor^Niemand",
}


def test_names_and_dates_reach_no_output(run, tmp_path):
    scans = write_scans(tmp_path / "scans", **SECRETS)
    spoil_scans(scans)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "kit", "predict", str(scans), "--run", str(run.path),
         "--out", str(out / "table.csv"), "--report", "--workers", "0"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_text(errors="replace") for path in out.rglob("*") if
               path.is_file()}  # fmt: skip
    assert {"table.csv", "table.skipped.csv", "table.json", "table.html"} <= set(written)
    assert written["table.skipped.csv"].count(".dcm") == 3 + 3 * len(SKIPPED)
    assert written["table.csv"].count("\n") == 1 + 3 + 3 * len(KEPT)
    for name, text in {**written, "stdout": done.stdout, "stderr": done.stderr}.items():
        for keyword, secret in SECRETS.items():
            for word in (secret, *secret.split("^"), *secret.split(" ")):
                assert word not in text, f"{keyword} is in {name}"


def test_a_damaged_zip_member_keeps_its_path_out_of_manifest_and_page(run, tmp_path):
    write_scans(tmp_path / "scans")
    short = write_slice(tmp_path / "short.dcm").read_bytes()
    archive = tmp_path / "scans.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for path in sorted((tmp_path / "scans").iterdir()):
            members.write(path, f"Muster_Anna/{path.name}")
        members.writestr("Muster_Anna/short.dcm", short)
    content = bytearray(archive.read_bytes())
    pixels = (tmp_path / "scans" / "0.dcm").read_bytes()[-64:]
    for part in (short[-300:], pixels):  # of one the header cannot be read, of one the pixels
        content[content.index(part)] ^= 1
    archive.write_bytes(content)
    out = tmp_path / "out" / "table.csv"
    call = ["predict", str(archive), "--run", str(run.path), "--out", str(out), "--report"]
    assert main([*call, "--quiet", "--workers", "0"]) == 0
    skipped = pd.read_csv(out.with_suffix(".skipped.csv"))
    assert list(skipped.columns) == ["path", "reason", "code"]
    assert skipped["code"].tolist() == ["zip member is damaged"] * 2
    assert skipped["reason"].str.contains("Bad CRC-32 for file 'Muster_Anna/").all()
    assert json.loads(out.with_suffix(".json").read_text())["skipped"] == {
        "zip member is damaged": 2
    }
    for ending in (".json", ".html"):
        assert "Muster" not in out.with_suffix(ending).read_text(encoding="utf-8")


# Elements to hold what belongs elsewhere: the slice is skipped for it, or kept without it.
SKIPPED = {
    "slope": b"\x28\x00\x53\x10DS",
    "unit": b"\x28\x00\x54\x10LO",
    "photometric": b"\x28\x00\x04\x00CS",
    "frames": b"\x28\x00\x08\x00IS",
    "modality": b"\x08\x00\x60\x00CS",
    "class": b"\x08\x00\x16\x00UI",
    "position": b"\x20\x00\x32\x00DS",
}
KEPT = {"spacing": b"\x28\x00\x30\x00DS", "thickness": b"\x18\x00\x50\x00DS"}


def replace_value(content: bytes, tag: bytes, value: bytes) -> bytes:
    """`content` with another value of the element that begins with `tag`."""
    start = content.index(tag)
    length = int.from_bytes(content[start + 6 : start + 8], "little")
    value += b" " * (len(value) % 2)
    new = tag + len(value).to_bytes(2, "little") + value
    return content[:start] + new + content[start + 8 + length :]


def spoil_scans(folder: Path) -> None:
    """Files in which broken bytes put the patient's name or birth where others are looked for."""
    tags = {"RescaleType": "HU", "NumberOfFrames": 1, "PixelSpacing": [1, 1], "SliceThickness": 5}
    stored = np.full((64, 64), 40, np.int16)
    good = write_slice(folder / "good.dcm", stored, **SECRETS, **tags).read_bytes()
    name = SECRETS["PatientName"].encode()
    modality = good.index(b"\x08\x00\x60\x00CS\x02\x00")
    end = good.index(name) + len(name)
    swallowing = bytearray(good)
    swallowing[modality + 6 : modality + 8] = (end - modality - 8).to_bytes(2, "little")
    uid = good.index(b"\x08\x00\x18\x00UI")
    swallowed = bytearray(good)
    swallowed[uid + 6 : uid + 8] = (end - uid - 8).to_bytes(2, "little")
    spoilt = {"swallowing": swallowing, "swallowed": swallowed}
    for number, keyword in enumerate(("PatientName", "PatientBirthName", "PatientBirthDate")):
        text = SECRETS[keyword].encode()
        for kind, tag in {**SKIPPED, **KEPT}.items():
            spoilt[f"{kind}{number}"] = replace_value(good, tag, text)
        for place, kind in enumerate(KEPT):  # of a name of its own each
            own = b"1.2.1.%d." % (3 + 2 * number + place)
            spoilt[f"{kind}{number}"] = spoilt[f"{kind}{number}"].replace(b"1.2.1.1.", own)
    for kind, content in spoilt.items():
        (folder / f"{kind}.dcm").write_bytes(content)
    (folder / "short.dcm").write_bytes(good[:-1].replace(b"1.2.1.1.", b"1.2.1.2."))
    (folder / "good.dcm").unlink()


# The library promises no kind of error there: a model's name and options come from the user.
BROAD = {("classifier.py", "make_backbone")}
UNSAFE_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pandas.read_pickle",
    "pd.read_pickle", "yaml.load", "eval", "exec", "os.system", "marshal.loads", "shelve.open",
}  # fmt: skip

LOADERS = ("torch.load", "timm.models.load_state_dict")


def find_unsafe(path: Path) -> list[str]:
    found, function = [], {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef):
            function.update(dict.fromkeys(ast.walk(scope), scope.name))
    for node in ast.walk(tree):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            safe = ast.unparse(options.get("weights_only", ast.Constant(False))) == "True"
            if name in UNSAFE_CALLS or (name in LOADERS and not safe):
                found.append(f"{place} {name}")
            if ast.unparse(options.get("allow_pickle", ast.Constant(False))) != "False":
                found.append(f"{place} allow_pickle")
        if isinstance(node, ast.ExceptHandler):
            kinds = "bare" if node.type is None else ast.unparse(node.type)
            broad = {"bare", "Exception", "BaseException"} & {part.strip(" ()") for part in
                                                              kinds.split(",")}  # fmt: skip
            raised_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if broad and not raised_again and (path.name, function.get(node)) not in BROAD:
                found.append(f"{place} except {kinds}")
    return found


def test_no_source_unpickles_or_swallows_every_error(tmp_path):
    sample = tmp_path / "bad.py"
    sample.write_text(
        "def f():\n try:\n  np.load(p, allow_pickle=True)\n except Exception:\n  torch.load(p)\n"
        "try:\n pickle.load(f)\nexcept:\n pass\n"
    )
    assert len(find_unsafe(sample)) == 5
    sources = sorted((ROOT / "kit").glob("**/*.py"))
    assert len(sources) > 20
    assert [line for source in sources for line in find_unsafe(source)] == []
