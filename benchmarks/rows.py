"""The rows of the table: each task by the kit, by the reference implementation, and bare.

A row's maker takes a scratch directory and an amount of work. `bench.py` does the timing; it first
calls `check`, which asserts that the results are equal. Files and batches are processed one after
another and no result is kept, as in a pipeline that passes each result on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import published
import samples

EMBEDDING = HIDDEN = 2048


@dataclass
class Row:
    """One row: `published` (the reference) and `floor` (the lower bound) are optional.

    Targets: `faster` is the smallest ratio of reference to kit, `above_floor` the largest ratio of
    kit to lower bound, `seconds` the kit's longest time, and `memory` its largest peak in GB beyond
    `model`. The forms of a row that is `together` take turns in one process: they are work of
    microseconds, which the state of a process's memory changes more.
    """

    work: str
    kit: Callable
    published: Callable | None = None
    floor: Callable | None = None
    check: Callable = lambda: None
    faster: float | None = None
    above_floor: float | None = None
    seconds: float | None = None
    memory: float | None = None
    model: float = 0.0  # GB of weights, gradients and optimizer state
    rounds: int = 5
    together: bool = False


def make_window(directory: Path, amount: int) -> Row:
    """DICOM file → three-window uint8."""
    import pydicom

    from kit.dicom.pixels import read_hounsfield
    from kit.windowing import window_image

    paths = samples.write_slices(directory, amount)

    def check():
        for path in paths:
            expected = published.window_file(path)
            np.testing.assert_array_equal(window_image(read_hounsfield(path)), expected)

    return Row(
        f"{len(paths)} DICOM files → three-window uint8, 512×512",
        each(lambda path: window_image(read_hounsfield(path)), paths),
        each(published.window_file, paths),
        each(lambda path: pydicom.dcmread(path).pixel_array, paths),
        check,
        above_floor=1.5,
        rounds=9,
        together=True,
    )


def make_crop(directory: Path, amount: int) -> Row:
    """DICOM file → cropped image as the classifier takes it."""
    import cv2
    import pydicom

    from kit.images import read_image
    from kit.windowing import InputConfig

    paths = samples.write_slices(directory, amount)

    def resize(path):
        return cv2.resize(pydicom.dcmread(path).pixel_array, (480, 480))

    def check():
        for path in paths:
            expected = published.read_image(path, 480)
            np.testing.assert_array_equal(read_image(path, InputConfig()), expected)

    return Row(
        f"{len(paths)} DICOM files → cropped 480×480 images",
        each(lambda path: read_image(path, InputConfig()), paths),
        each(lambda path: published.read_image(path, 480), paths),
        each(resize, paths),
        check,
        faster=6,
        rounds=9,
    )


def make_index(directory: Path, amount: int) -> Row:
    """Headers of a folder → slice table, including the start of the process."""
    folder = samples.write_headers(directory, amount)

    def check():
        from joblib.externals.loky import get_reusable_executor

        from kit.slices.index import index_slices

        slices, skipped = index_slices(folder)
        get_reusable_executor().shutdown()  # idle, it would keep this process for five minutes
        expected = published.index_folder(folder)
        assert not len(skipped)
        assert_same_order(slices, expected)

    return Row(
        f"index {amount} headers, cold process",
        lambda: run_python(
            f"from kit import progress, slices; progress.quiet = True; "
            f"slices.index_slices({str(folder)!r})"
        ),
        lambda: run_python(f"import published; published.index_folder({str(folder)!r})"),
        lambda: run_python(f"import floors; floors.read_headers({str(folder)!r})"),
        check,
        above_floor=1.5,
    )


def make_slices(directory: Path, amount: int) -> Row:
    """Header columns → series, order, seq."""
    from kit.slices.index import order_slices

    table = samples.make_slice_table(amount)
    codes = pd.factorize(table["SeriesInstanceUID"])[0]
    position = np.random.default_rng(0).random(amount)  # any sort takes the same time
    return Row(
        f"slice table of {amount} rows: series, order, seq",
        lambda: order_slices(table),
        lambda: published.order_slices(table),
        lambda: np.lexsort((position, codes)),
        lambda: assert_same_order(order_slices(table), published.order_slices(table)),
        seconds=4.0,
        memory=1.5,
        rounds=3,
    )


def make_batch(directory: Path, amount: int, deltas: bool = False) -> Row:
    """Four series of a table of `amount` series, as the models take them.

    The kit's model computes the differences itself, on the device; `deltas` includes that cost.
    """
    import torch

    from kit.sequences import SeriesDataset, add_deltas, collate_series
    from kit.training.inference import move_batch

    embeddings, table = samples.make_series(amount, EMBEDDING)
    ours = SeriesDataset(embeddings, table, table["embidx"])
    theirs = published.SeriesDataset(embeddings.astype(np.float32), table)
    device = torch.device("cpu")
    draws = np.random.default_rng(1).integers(0, amount, (200, 4))
    kept = torch.from_numpy(embeddings)
    kept = torch.cat([kept.float()] * 3, dim=1) if deltas else kept

    def copy(numbers):
        rows = [torch.from_numpy(ours.positions[number]) for number in numbers]
        return [kept[part] for part in rows]

    def load(numbers, deltas=deltas):
        batch = move_batch(collate_series([ours[number] for number in numbers]), device)
        if deltas:
            batch["emb"] = add_deltas(batch["emb"].float(), batch["mask"])
        return batch

    def check():
        for numbers in draws:
            batch, expected = (
                load(numbers, deltas=True),
                published.load_batch(theirs, numbers, device),
            )
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])

    plain = f"200 batches of 4 series ready on the device (E = {EMBEDDING})"
    return Row(
        "the same, differences computed there in float32" if deltas else plain,
        each(load, draws),
        each(lambda numbers: published.load_batch(theirs, numbers, device), draws),
        each(copy, draws),
        check,
        faster=5,
        rounds=9,
    )


def make_lstm_prediction(directory: Path, amount: int, hidden: int = HIDDEN) -> Row:
    """Logits of `amount` series."""
    import torch

    from kit.lstm import predict_logits
    from kit.sequences import SeriesDataset, batch_by_length, collate_series
    from kit.training import amp

    ours, theirs = make_models(hidden)
    exact, _ = make_models(hidden, theirs.state_dict(), opt_level="O0")
    embeddings, table = samples.make_series(amount, hidden)
    series = SeriesDataset(embeddings, table, table["embidx"])
    theirs_series = published.SeriesDataset(embeddings.astype(np.float32), table)
    device = torch.device("cpu")
    batches = [
        collate_series([series[number] for number in numbers])
        for numbers in batch_by_length(series.lengths(), 2048)
    ]

    def forward():
        for batch in batches:
            with torch.inference_mode(), amp.autocast(device, "O1"):
                ours(batch["emb"], batch["mask"])

    def check():
        # One series per batch: otherwise padding reaches the LSTM of the reference.
        few = table[table["series"].isin(table["series"].unique()[:6])]
        alone = published.SeriesDataset(embeddings.astype(np.float32), few)
        expected = published.predict_series(theirs, alone, device, batch_size=1)
        part = SeriesDataset(embeddings, few, few["embidx"])
        np.testing.assert_allclose(predict_logits(exact, part, device), expected, atol=1e-4)
        np.testing.assert_allclose(predict_logits(ours, part, device), expected, atol=0.03)

    return Row(
        f"LSTM inference over {amount} series, hidden {hidden}",
        lambda: predict_logits(ours, series, device),
        lambda: published.predict_series(theirs, theirs_series, device),
        forward,
        check,
        rounds=3,
    )


def make_lstm_step(directory: Path, amount: int, hidden: int = HIDDEN) -> Row:
    """Three training steps, each on `amount` different series: forward, backward, Adam."""
    from kit.training import amp
    from kit.training.optimizer import make_optimizer
    from kit.training.step import Stepper

    def prepare(hidden, amount=amount, **options):
        """Three steps of the kit, of the reference and of a bare loop; each keeps its state."""
        ours, theirs = make_models(hidden, **options)
        model, optimizer = amp.initialize(
            ours, make_optimizer(ours, ours.config), ours.config.opt_level
        )
        stepper = Stepper(model, optimizer, compute_sequence_loss, amount)
        batches, expected = make_step_batches(amount, hidden)
        bare = make_optimizer(ours, ours.config)
        reference = published.make_optimizer(theirs)

        def step_bare():
            for batch in batches:
                bare.zero_grad(set_to_none=True)
                compute_sequence_loss(model, batch).backward()
                bare.step()

        def step_kit():
            return [stepper.take(batch).read()[0] for batch in batches]

        def step_published():
            return [published.train_step(theirs, reference, batch) for batch in expected]

        return step_kit, step_published, step_bare

    def check():
        # Losses of three steps of a small model, each after an update: unpacked in float32, and as
        # the kit trains where no padding reaches the LSTM of the reference.
        ours, theirs, _ = prepare(64, packed=False, opt_level="O0", learning_rate=1e-5)
        np.testing.assert_allclose(ours(), theirs(), rtol=1e-5)
        ours, theirs, _ = prepare(64, amount=1, learning_rate=1e-5)
        np.testing.assert_allclose(ours(), theirs(), rtol=0.01)

    return Row(
        f"3 LSTM training steps, hidden {hidden}, batches of {amount} series",
        *prepare(hidden),
        check=check,
        rounds=3,
    )


def make_step_batches(amount: int, hidden: int) -> tuple[list[dict], list[dict]]:
    """The same three batches of series for the kit's model and for the reference."""
    from kit.sequences import SeriesDataset, collate_series

    embeddings, table = samples.make_series(3 * amount, hidden)
    series = SeriesDataset(embeddings, table, table["embidx"])
    theirs = published.SeriesDataset(embeddings.astype(np.float32), table)
    parts = np.split(np.arange(3 * amount), 3)
    return (
        [collate_series([series[number] for number in part]) for part in parts],
        [published.load_batch(theirs, part, "cpu") for part in parts],
    )


def compute_sequence_loss(model, batch: dict):
    """The loss that `kit.lstm.train_lstm` computes."""
    from kit.lstm import sequence_loss

    return sequence_loss(model(batch["emb"], batch["mask"]), batch["labels"], batch["mask"])


def make_models(hidden: int, weights: dict | None = None, **options):
    """The kit's LSTM and the reference with the same weights: `weights`, or new ones."""
    import torch

    from kit.lstm import LSTMConfig, SequenceLSTM

    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=hidden, hidden_size=hidden, **options)
    ours, theirs = SequenceLSTM(config).eval(), published.make_lstm(hidden, hidden).eval()
    weights = weights or ours.state_dict()
    for model in (ours, theirs):
        model.load_state_dict({name: value.clone() for name, value in weights.items()})
    return ours, theirs


def make_extraction(directory: Path, amount: int, size: int = 480) -> Row:
    """Embeddings of files, averaged over three views, including the loading of the model."""
    import shutil

    import torch

    from kit.classifier import ClassifierConfig, load_classifier
    from kit.embeddings import extract_embeddings
    from kit.images import choose_batch, read_image
    from kit.training import amp
    from kit.training.inference import fuse_normalization
    from kit.windowing import InputConfig

    paths = samples.write_slices(directory, amount)[:amount]
    weights = samples.write_classifier(directory, size)
    table = pd.DataFrame({"path": paths, "SOPInstanceUID": [Path(p).stem for p in paths]})
    images = torch.from_numpy(
        np.stack([read_image(path, InputConfig(image_size=size)) for path in paths])
    )
    device, out = torch.device("cpu"), directory / "store"

    def extract():
        shutil.rmtree(out, ignore_errors=True)
        return extract_embeddings(table, weights, out, device, workers=1)

    def extract_published():
        backbone = published.load_backbone(weights, ClassifierConfig.architecture)
        # On two cores at 480 px, a batch of 1 is fastest: 0.89 s per image (2: 0.99 s, 4: 1.17 s).
        at_once = 1 if size == 480 else choose_batch(size, device)
        return published.extract_embeddings(backbone, paths, size, device, batch_size=at_once)

    def embed_views(images, level):
        model = load_classifier(weights)
        model.backbone = fuse_normalization(model.backbone)
        with torch.inference_mode(), amp.autocast(device, level):
            parts = images.split(choose_batch(size, device))
            return torch.cat([model.embed_views(part) for part in parts])

    def check():
        expected = extract_published()
        largest = np.abs(expected).max()
        exact = embed_views(images[:2], "O0").numpy()
        np.testing.assert_allclose(exact, expected[:2], atol=1e-4 * largest)
        found = np.asarray(extract().embeddings, dtype=np.float64)
        np.testing.assert_allclose(found, expected, atol=0.03 * largest)

    return Row(
        f"embeddings of {amount} files, ResNeXt-101 at {size} px, three views",
        extract,
        extract_published,
        lambda: embed_views(images, amp.choose_convolution_level(device, "O1")),
        check,
        faster=2,
        above_floor=1 / 0.95,
        rounds=3,
    )


def make_prediction(directory: Path, amount: int) -> Row:
    """`kit predict` of one series from the shell, with one full-size classifier and LSTM."""
    folder, run = samples.write_series(directory, amount), samples.write_run(directory)
    out, bare = directory / "predicted.csv", directory / "bare.csv"
    floor = f"import floors; floors.predict({str(folder)!r}, {str(run)!r}, {str(bare)!r})"
    command = ["-m", "kit", "predict", str(folder), "--run", str(run), "--out", str(out)]
    command += ["--quiet", "--overwrite"]

    def check():
        run_child(command)
        run_python(floor)
        found, expected = (pd.read_csv(path, index_col="SOPInstanceUID") for path in (out, bare))
        found = found.loc[expected.index, published.LABELS]
        np.testing.assert_allclose(found, expected[published.LABELS], atol=0.01)

    return Row(
        f"`kit predict` of one {amount}-slice series at full size, start to finish",
        lambda: run_child(command),
        floor=lambda: run_python(floor),
        check=check,
        above_floor=1.15,
        rounds=3,
    )


def make_submission(directory: Path, amount: int) -> Row:
    """Write and validate a submission of `amount` rows against the sample."""
    from kit.competition import read_submission
    from kit.submission import write_submission

    wide = samples.make_probabilities(amount // 6)
    sample, ours, theirs = (directory / name for name in ("sample.csv", "ours.csv", "theirs.csv"))
    write_submission(wide * 0 + 0.5, sample)
    text = sample.read_bytes()  # every submission for these images has this length

    def write_bare():
        (directory / "bare.csv").write_bytes(text)
        return sample.read_bytes()

    def write_published():
        published.write_submission(wide, theirs)
        published.validate_submission(theirs, sample)

    def check():
        write_submission(wide, ours, sample)
        write_published()
        assert ours.read_bytes() == theirs.read_bytes()
        pd.testing.assert_frame_equal(read_submission(ours), wide, check_exact=False, atol=1e-12)

    return Row(
        f"writing and validating {amount // 6 * 6} rows",
        lambda: write_submission(wide, ours, sample),
        write_published,
        write_bare,
        check,
        seconds=3,
        rounds=3,
    )


def make_bag(directory: Path, amount: int, members: int = 30) -> Row:
    """Members from their files → the submission; the reference reads CSV files."""
    import pyarrow.parquet as pq

    from kit.ensemble import bag
    from kit.runs.tables import read_members
    from kit.submission import write_submission

    tables, texts = samples.write_members(directory, amount // 6, members)
    ours, theirs = directory / "bag.csv", directory / "bag_published.csv"
    text = texts[0].read_bytes()

    def read_bare():
        for path in tables:
            pq.read_table(path)
        (directory / "bare.csv").write_bytes(text)

    def bag_published():
        mean = published.bag_submissions(texts)
        mean.rename("Label").reset_index().to_csv(theirs, index=False, float_format="%.6f")

    def check():
        write_submission(bag(read_members(tables)), ours)
        bag_published()
        found, expected = pd.read_csv(ours), pd.read_csv(theirs)
        assert found["ID"].equals(expected["ID"])
        # A mean that ends in half a millionth may be rounded in either direction.
        np.testing.assert_allclose(found["Label"], expected["Label"], atol=1.01e-6)

    return Row(
        f"submission of {members} members × {amount // 6 * 6} rows bagged",
        lambda: write_submission(bag(read_members(tables)), ours),
        bag_published,
        read_bare,
        check,
        seconds=10,
        memory=1.5,
        rounds=9,
    )


def assert_same_order(slices: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Assert that series, order and numbering are equal."""
    left = slices.set_index("SOPInstanceUID").sort_index()
    right = expected.set_index("SOPInstanceUID").sort_index()
    assert left.index.equals(right.index)
    np.testing.assert_array_equal(left["seq"], right["seq"])
    keys = pd.factorize(left["series"])[0], pd.factorize(right["series"])[0]
    np.testing.assert_array_equal(*keys)


def each(work: Callable, items: Iterable) -> Callable[[], None]:
    """Work on one item after another and drop the results."""

    def run() -> None:
        for item in items:
            work(item)

    return run


def run_python(code: str) -> None:
    """Run a line of Python in its own process, which can import the benchmarks' modules."""
    run_child(["-c", code])


def run_child(arguments: list[str]) -> None:
    """Run this interpreter with `arguments`; raise if it fails."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here}
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
    )
