"""Lower bounds: the bare library call or forward pass. Each runs in its own process."""

from __future__ import annotations

import os
from pathlib import Path


def read_headers(folder: str) -> list[int]:
    """Read every header by `dcmread` in as many of joblib's processes as the kit's index uses."""
    import joblib

    paths = sorted(entry.path for entry in os.scandir(folder))
    batches = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    parallel = joblib.Parallel(joblib.cpu_count(), return_as="generator")
    return list(parallel(joblib.delayed(_read_batch)(batch) for batch in batches))


def _read_batch(paths: list[str]) -> int:
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return len([pydicom.dcmread(path, stop_before_pixels=True) for path in paths])


def predict(folder: str, run: str, out: str) -> None:
    """Load both models of a run and call them on the images of a folder of one axial series."""
    import numpy as np
    import pandas as pd
    import pydicom
    import torch

    from kit.classifier import load_classifier
    from kit.competition import LABELS
    from kit.images import choose_batch, read_image
    from kit.lstm import load_lstm
    from kit.runs.directory import Run
    from kit.training import amp
    from kit.training.inference import fuse_normalization
    from kit.windowing import InputConfig

    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in Path(folder).iterdir()]
    headers.sort(key=lambda header: header.ImagePositionPatient[2])
    images = np.stack([read_image(header.filename, InputConfig()) for header in headers])
    classifier = load_classifier(Run(Path(run)).classifier("all") / "epoch1.safetensors")
    lstm = load_lstm(Run(Path(run)).lstm("all", 1) / "epoch1.safetensors")
    classifier.backbone = fuse_normalization(classifier.backbone)
    device = torch.device("cpu")
    parts = torch.from_numpy(images).split(choose_batch(480, device))
    level = amp.choose_convolution_level(device, "O1")
    with torch.inference_mode(), amp.autocast(device, level):
        embeddings = torch.cat([classifier.embed(part) for part in parts])[None].half()
    with torch.inference_mode(), amp.autocast(device, "O1"):
        logits = lstm(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool))
    names = pd.Index([header.SOPInstanceUID for header in headers], name="SOPInstanceUID")
    probabilities = torch.sigmoid(logits[0].double()).numpy()
    pd.DataFrame(probabilities, index=names, columns=list(LABELS)).to_csv(out)
