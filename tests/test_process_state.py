"""Importing or calling any part of kit changes nothing in the process of its caller."""

import json
import subprocess
import sys

from conftest import ROOT

COMPARE = """
import json, os, pkgutil, random, sys, warnings
import numpy as np
import pydicom
import torch

def read_state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": str(torch.get_default_dtype()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.mkldnn.enabled,
        ),
        "grad": torch.is_grad_enabled(),
        "random": (
            torch.random.get_rng_state().tolist(),
            repr(np.random.get_state()),
            hash(random.getstate()),
        ),
        "warnings": list(map(str, warnings.filters)),
        "environment": dict(os.environ),
        "dicom": (
            pydicom.config.settings.reading_validation_mode,
            pydicom.config.settings.writing_validation_mode,
        ),
        "folder": os.getcwd(),
    }

def report(name, before):
    after = read_state()
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        print(json.dumps([name, changed]))
"""

IMPORTS = (
    COMPARE
    + """
import importlib
# Modules that belong to others may add filters of their own when they are first imported.
import pandas, timm, tqdm, joblib, cv2, scipy, albumentations, sklearn.calibration, torchvision
import kit
names = [module.name for module in pkgutil.walk_packages(kit.__path__, "kit.")]
assert len(names) > 40, names
for name in names:
    if name != "kit.__main__":
        before = read_state()
        importlib.import_module(name)
        report(name, before)
"""
)

CALLS = (
    COMPARE
    + """
from pathlib import Path
import pandas as pd
from dicom_files import write_slice
from torch import nn
from kit.classifier import Classifier, ClassifierConfig, load_classifier, train_classifier
from kit.competition import LABELS
from kit.embeddings import extract_embeddings, make_series
from kit.lstm import LSTMConfig, load_lstm, predict_logits, train_lstm
from kit.recipes import SMALL_RESNEXT
from kit.training import amp
import albumentations, timm

folder, cpu = Path(sys.argv[1]), torch.device("cpu")
for number in range(12):
    stored = np.random.default_rng(number).integers(-1000, 1000, (32, 32), dtype=np.int16)
    write_slice(folder / f"{number}.dcm", stored)
table = pd.DataFrame({"path": [str(folder / f"{number}.dcm") for number in range(12)]})
table["SOPInstanceUID"], table["series"] = table["path"], ["a"] * 6 + ["b"] * 6
table[list(LABELS)] = 0.0
config = ClassifierConfig(
    architecture="resnext50_32x4d", architecture_options=SMALL_RESNEXT, image_size=32, epochs=1,
    batch_size=4,
)

before = read_state()
train_classifier(table, config, folder / "classifier", cpu, 0, validation=table)
report("train_classifier", before)

before = read_state()
weights = folder / "classifier" / "epoch1.safetensors"
store = extract_embeddings(table, weights, folder / "store", cpu, 0)
report("extract_embeddings", before)

before = read_state()
load_classifier(weights)
report("load_classifier", before)

before = read_state()
series = make_series(store, table)
chosen = LSTMConfig(
    embedding_size=store.embeddings.shape[1], hidden_size=8, epochs=1, standardize=True,
    embedding_dropout=0.1,
)
train_lstm(series, chosen, folder / "lstm", cpu, validation=series)
report("train_lstm", before)

before = read_state()
predict_logits(load_lstm(folder / "lstm" / "epoch1.safetensors"), series, cpu)
report("predict_logits", before)

for level in amp.OPT_LEVELS:
    net = nn.Linear(3, 1)
    before = read_state()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    amp.initialize(net, optimizer, level)
    with amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    report(f"amp {level}", before)
    assert optimizer.step.__func__ is torch.optim.Adam.step
"""
)


def run(code: str, *arguments) -> list:
    """Run Python in a process of its own; the changes that it reports."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "PATH": "/usr/bin:/bin",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_the_comparison_notices_changes():
    changes = """
before = read_state()
torch.set_num_threads(7); warnings.simplefilter("error"); torch.rand(1); os.environ["A"] = "b"
pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
report("sample", before)
"""
    (found,) = run(COMPARE + changes)
    assert set(found[1]) == {"threads", "warnings", "random", "environment", "dicom"}


def test_no_import_changes_the_process():
    assert run(IMPORTS) == []


def test_no_call_changes_the_process(tmp_path):
    assert run(CALLS, tmp_path) == []
