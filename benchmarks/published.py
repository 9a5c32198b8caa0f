"""The reference implementation with which the benchmarks compare the kit.

It was written for this project from the description of the 2nd-place solution (2019): windows in
float64, each image read once per view, differences computed by the loader in float64, padding that
passes through the LSTM, everything in float32, and pandas for text. Nothing here is slower than
that on purpose. Library calls are used where they are the plain choice, and where the description
leaves a choice, the faster one is taken, with two exceptions whose cost `RESULTS.md` states: the
index reads whole files, and parses lists in text as Python. `tests/test_benchmarks.py` checks that
the results equal the kit's.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pydicom.config

LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
WINDOWS = ((40, 80), (80, 200), (40, 380))  # (center, width) of brain, subdural, soft tissue
MEAN = (0.22363983, 0.18190407, 0.2523437)
STD = (0.32451536, 0.2956294, 0.31335256)

# As in the kit; otherwise pydicom spends its time on a warning for every UID of the competition.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def window_file(path: str | Path) -> np.ndarray:
    """DICOM file → uint8 (rows, cols, 3): clip, scale, subtract the minimum, × 255, truncate."""
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept
    return window_image(hounsfield)


def window_image(hounsfield: np.ndarray) -> np.ndarray:
    """Float64 HU (rows, cols) → uint8 (rows, cols, 3).

    The published code also subtracts a mean before the minimum; this cancels and is omitted here.
    """
    channels = []
    for center, width in WINDOWS:
        low, high = center - width // 2, center + width // 2
        channels.append((np.clip(hounsfield, low, high) - low) / (high - low))
    image = np.array(channels).transpose(1, 2, 0)  # reducing planes is faster than reducing pixels
    image -= image.min(axis=(0, 1))
    return (image * 255).astype(np.uint8)


def crop_to_head(image: np.ndarray) -> np.ndarray:
    """Bounding box of the maximum over channels, at the top left of a zero square."""
    bright = image.max(axis=2) > 0
    if bright.any():
        rows, columns = np.where(bright.any(axis=1))[0], np.where(bright.any(axis=0))[0]
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(3, *image.shape[:2])
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[: image.shape[0], : image.shape[1]] = image
    return square


def read_image(path: str | Path, size: int) -> np.ndarray:
    """DICOM file → windowed, cropped and resized uint8 (size, size, 3)."""
    import cv2

    return cv2.resize(crop_to_head(window_file(path)), (size, size))


def index_folder(folder: str | Path) -> pd.DataFrame:
    """One row per file with every tag except the pixels, read in sequence; series, order, seq."""
    rows = []
    for name in sorted(os.listdir(folder)):
        dataset = pydicom.dcmread(os.path.join(folder, name))
        names = [name for name in dataset.dir() if name != "PixelData"]
        rows.append({name: getattr(dataset, name) for name in names})
    table = pd.DataFrame(rows)
    table["ImagePositionPatient"] = [str([str(v) for v in x]) for x in table.ImagePositionPatient]
    return order_slices(table)


def order_slices(table: pd.DataFrame) -> pd.DataFrame:
    """Name the series, parse positions (Python lists in text), sort by x, y, z, and count."""
    table = table.copy()
    table["series"] = (
        table.PatientID + "__" + table.SeriesInstanceUID + "__" + table.StudyInstanceUID
    )
    places = [[float(v) for v in ast.literal_eval(text)] for text in table.ImagePositionPatient]
    table[["x", "y", "z"]] = np.array(places)
    table = table.sort_values(["series", "x", "y", "z"]).reset_index(drop=True)
    table["seq"] = table.groupby("series").cumcount() + 1
    return table


class SeriesDataset:
    """The series of a table (`series`, `seq`, `embidx`, labels); computes the differences."""

    def __init__(self, embeddings: np.ndarray, table: pd.DataFrame):
        self.embeddings, self.names = embeddings, table["series"].unique()
        self.table = table.set_index("series")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict:
        import torch

        # A scalar key is fastest and returns a table, because no series has a single slice.
        rows = self.table.loc[self.names[number]].sort_values("seq")
        emb = self.embeddings[rows["embidx"].values]
        previous, following = np.zeros(emb.shape), np.zeros(emb.shape)
        previous[1:], following[:-1] = emb[1:] - emb[:-1], emb[:-1] - emb[1:]
        return {
            "emb": torch.from_numpy(np.concatenate([emb, previous, following], axis=1)),
            "embidx": torch.tensor(rows["embidx"].values),
            "labels": torch.from_numpy(rows[LABELS].values),
        }


def collate(items: list[dict]) -> dict:
    """Pad in front to the longest series: zeros, `embidx` −1, mask 0."""
    import torch

    longest = max(len(item["embidx"]) for item in items)
    batch = {"emb": [], "embidx": [], "labels": [], "mask": []}
    for item in items:
        pad = longest - len(item["embidx"])
        front = torch.zeros(pad, dtype=torch.int64)
        mask = torch.cat([front, torch.ones(longest - pad, dtype=torch.int64)])
        batch["mask"].append(mask)
        batch["embidx"].append(torch.cat([front - 1, item["embidx"]]))
        for name in ("emb", "labels"):
            zeros = item[name].new_zeros(pad, item[name].shape[1])
            batch[name].append(torch.cat([zeros, item[name]]))
    return {name: torch.stack(values) for name, values in batch.items()}


def load_batch(dataset: SeriesDataset, numbers, device) -> dict:
    """A batch on the device as the model takes it; embeddings and labels in float32."""
    import torch

    batch = collate([dataset[number] for number in numbers])
    for name in ("emb", "labels"):
        batch[name] = batch[name].to(device, dtype=torch.float32)
    return batch | {"mask": batch["mask"].to(device)}


def make_lstm(embedding: int, hidden: int):
    """The published sequence model: (B, T, 3E) → (B, T, 6), padding included."""
    from torch import cat, nn

    class SequenceModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm1 = nn.LSTM(3 * embedding, hidden, bidirectional=True, batch_first=True)
            self.lstm2 = nn.LSTM(2 * hidden, hidden, bidirectional=True, batch_first=True)
            self.linear1 = nn.Linear(2 * hidden, 2 * hidden)
            self.linear2 = nn.Linear(2 * hidden, 2 * hidden)
            self.linear = nn.Linear(2 * hidden, len(LABELS))

        def forward(self, inputs):
            skip = inputs[..., :embedding]
            hidden1, _ = self.lstm1(inputs)
            hidden2, _ = self.lstm2(hidden1)
            branches = self.linear1(hidden1).relu() + self.linear2(hidden2).relu()
            return self.linear(hidden1 + hidden2 + branches + cat([skip, skip], dim=-1))

    return SequenceModel()


def predict_series(model, dataset: SeriesDataset, device, batch_size: int = 4) -> np.ndarray:
    """Logits (slices, 6) by `embidx`, in the table's order of series, four at a time."""
    import torch

    logits = np.zeros((int(dataset.table["embidx"].max()) + 1, len(LABELS)), np.float32)
    with torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            numbers = range(start, min(start + batch_size, len(dataset)))
            batch = load_batch(dataset, numbers, device)
            real = batch["mask"].bool()
            output = model(batch["emb"])[real].float().cpu().numpy()
            logits[batch["embidx"][real.cpu()].numpy()] = output
    return logits


def make_optimizer(model, rate: float = 1e-5, decay: float = 0.0):
    """Adam with weight decay on everything but biases."""
    import torch

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if "bias" not in n], "weight_decay": decay},
        {"params": [p for n, p in named if "bias" in n], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=rate)


def train_step(model, optimizer, batch: dict, mixed=None, scaler=None) -> float:
    """One step of (6·BCE over all labels + BCE of `any`) / 7 over the real slices.

    A dtype `mixed` and a loss `scaler` make it apex's O1, which needs a GPU; otherwise float32.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    real = batch["mask"].bool()
    optimizer.zero_grad()
    with torch.autocast(batch["emb"].device.type, dtype=mixed, enabled=mixed is not None):
        logits = model(batch["emb"])[real]
    logits, labels = logits.float(), batch["labels"][real]
    loss = (6 * cross_entropy(logits, labels) + cross_entropy(logits[:, 5], labels[:, 5])) / 7
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return float(loss.detach())


class ImageDataset:
    """One view of each file, normalized on the CPU: identity, flip or transpose."""

    def __init__(self, paths: list[str], size: int, view: str):
        import albumentations

        views = {"flip": albumentations.HorizontalFlip, "transpose": albumentations.Transpose}
        steps = [views[view](p=1.0)] if view in views else []
        steps.append(albumentations.Normalize(MEAN, STD, max_pixel_value=255.0))
        self.paths, self.size, self.transform = paths, size, albumentations.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        import torch

        image = self.transform(image=read_image(self.paths[row], self.size))["image"]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def load_backbone(weights: str | Path, architecture: str):
    """The timm model of a classifier that the kit saved."""
    import timm
    from safetensors.torch import load_file

    backbone = timm.create_model(architecture, num_classes=0)
    state = {name.removeprefix("backbone."): value for name, value in load_file(weights).items()}
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict()})
    return backbone.eval()


def extract_embeddings(backbone, paths, size, device, workers: int = 1, batch_size: int = 4):
    """Pooled embeddings (N, E), float32; reads the files once for each of three views."""
    import torch

    total = 0
    with torch.no_grad():
        for view in ("identity", "flip", "transpose"):
            loader = torch.utils.data.DataLoader(
                ImageDataset(paths, size, view), batch_size, num_workers=workers
            )
            parts = [backbone(images.to(device)).float().cpu() for images in loader]
            total = total + torch.cat(parts)
    return (total / 3).numpy()


def write_submission(wide: pd.DataFrame, path: str | Path) -> None:
    """Write (images × labels) in the long form, in the order of the images, clipped, by pandas."""
    long = wide.clip(1e-5, 1 - 1e-5).stack().reset_index()
    long.columns = ["image", "label", "Label"]
    long["ID"] = long["image"] + "_" + long["label"]
    long[["ID", "Label"]].to_csv(path, index=False, float_format="%.6f")


def validate_submission(path: str | Path, sample: str | Path) -> pd.DataFrame:
    """Read the file and the sample by pandas and check ids, order, duplicates and range."""
    table, expected = pd.read_csv(path), pd.read_csv(sample)
    if list(table.columns) != ["ID", "Label"] or not table["ID"].equals(expected["ID"]):
        raise ValueError(f"{path}: other ids than the sample's")
    if table["ID"].duplicated().any() or not table["Label"].between(0, 1).all():
        raise ValueError(f"{path}: repeated ids or values out of range")
    return table


def bag_submissions(paths: list[Path]) -> pd.Series:
    """The clipped mean, by ID, of members stored as CSV files in the long form."""
    total = 0
    for path in paths:
        total = total + pd.read_csv(path).set_index("ID")["Label"]
    return (total / len(paths)).clip(1e-5, 1 - 1e-5)
