"""Releases as their authors laid them out, with drawn weights, for the tests of the import."""

import json
import runpy
from dataclasses import replace

import numpy as np
import timm
import torch
from conftest import shared
from safetensors.torch import save_file

from kit.classifier import Classifier
from kit.files import hash_file
from kit.lstm import make_model
from kit.models import kinds

# A MaxViT of four small stages in place of the released one.
TINY_MAXVIT = {"embed_dim": [8, 8, 16, 32], "stem_width": 8, "depths": [1, 1, 1, 1],
               "head_hidden_size": 512, "img_size": 64, "transformer_dim_head": 8}  # fmt: skip


def draw(names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for each name of a released file, of the shape of the one given."""
    drawing = runpy.run_path(str(shared("golden/released.py")))["draw"]
    return {
        name: torch.as_tensor(np.asarray(drawing(name, tuple(value.shape), 1)))
        for name, value in names.items()
    }


def blocks(shape, seed):
    return runpy.run_path(str(shared("golden/released.py")))["blocks"](shape, seed)


def shrink_ianpan(monkeypatch):
    """Let the release be of a model that computes in no time, at 64 pixels."""
    config = kinds.IANPAN_CLASSIFIER
    small = replace(config, image_size=64, architecture_options=TINY_MAXVIT)
    monkeypatch.setattr(kinds, "IANPAN_CLASSIFIER", small)


def write_ianpan(folder):
    """The release of `ianpan`: two files, their checksums, and code that nobody runs."""
    with torch.device("meta"):
        own = Classifier(kinds.IANPAN_CLASSIFIER).state_dict()
        sequence = make_model(kinds.IANPAN_SEQUENCE).state_dict()
    classifier = {name.replace("head.", "linear.") if name.startswith("head.") else name: value
                  for name, value in own.items()}  # fmt: skip
    pool = {name.replace("sequence_pool", "mil_pool"): value
            for name, value in sequence.items() if name.startswith("sequence_pool")}  # fmt: skip
    sums = []
    for name, tensors in (("classifier", classifier), ("sequence", {**sequence, **pool})):
        path = folder / name / "model.safetensors"
        path.parent.mkdir(parents=True)
        save_file(draw(tensors), path)
        sums.append(
            {
                "path": f"{name}/model.safetensors",
                "size_bytes": path.stat().st_size,
                "sha256": hash_file(path),
            }
        )
    sums.append({"path": "segmentation/fold0.safetensors", "size_bytes": 1, "sha256": "0"})
    (folder / "checksums.json").write_text(json.dumps(sums))
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "inference.Model"}}')
    (folder / "inference.py").write_text("raise SystemExit('this file was run')\n")
    return folder


def write_appian(path, architecture="legacy_seresnext50_32x4d", **entries):
    """A file of `appian`: weights, an optimizer's state, NumPy scalars beside them."""
    with torch.device("meta"):
        names = timm.create_model(architecture, num_classes=6).state_dict()
    detail = {"score": np.float64(0.06), "epoch": np.int64(3), "name": "model100"}
    saved = {"model": draw(names), "optim": {"state": {}}, "detail": detail, **entries}
    torch.save(saved, path)
    return path
