"""Series as batches of images: order, padding, what cannot be read, augmentation."""

import numpy as np
import pandas as pd
import pytest
import torch

from kit.competition import LABELS
from kit.lstm.series_images import SeriesImages
from kit.training.checkpoints import TrainingError
from kit.training.config import ClassifierConfig

CONFIG = ClassifierConfig(image_size=32, crop=False)


def make_table(lengths, folder=None, broken=()):
    """Series of slices with pixels of their own; those of `broken` rows are empty files."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"series": np.repeat([f"s{n}" for n in range(len(lengths))], lengths)})
    table["path"] = [f"{row}.dcm" for row in range(len(table))]
    table["source"] = [rng.uniform(0, 80, (40, 40)).astype(np.float32) for _ in range(len(table))]
    for row in broken:
        path = folder / f"{row}.dcm"
        path.touch()
        table.at[row, "source"] = str(path)
    table[list(LABELS)] = (rng.random((len(table), 6)) < 0.4).astype(np.float32)
    return table


def test_a_batch_has_each_series_in_order_padded_in_front():
    table = make_table([2, 4, 3])
    series = SeriesImages(table, CONFIG, False, 0, None)
    (batch,) = series.make_batches(1, [np.array([2, 0])], workers=0)
    assert batch["names"] == ["s2", "s0"]
    assert batch["mask"].tolist() == [[True, True, True], [False, True, True]]
    assert batch["image"].shape == (5, 32, 32, 3)
    parts = batch["parts"][batch["mask"]]
    assert parts[:, 0].tolist() == [0, 1, 2, 3, 4]
    labels = table[list(LABELS)].to_numpy()[[6, 7, 8, 0, 1]]
    np.testing.assert_array_equal(batch["labels"][batch["mask"]].numpy(), labels)
    assert batch["labels"][~batch["mask"]].tolist() == [[0.0] * 6]
    alone = SeriesImages(table.iloc[6:], CONFIG, False, 0, None)
    (expected,) = alone.make_batches(1, [np.array([0])], workers=0)
    assert torch.equal(batch["image"][:3], expected["image"])


def test_slices_that_cannot_be_read_are_left_out_and_a_series_of_none_too(tmp_path):
    table = make_table([2, 3, 4], tmp_path, broken=(0, 1, 3))
    series = SeriesImages(table, CONFIG, False, 0, None)
    first, second = series.make_batches(1, [np.array([1, 0]), np.array([2])], workers=0)
    assert first["names"] == ["s1"]
    assert first["mask"].tolist() == [[True, True]]
    labels = table[list(LABELS)].to_numpy()[[2, 4]]
    np.testing.assert_array_equal(first["labels"][0].numpy(), labels)
    assert second["names"] == ["s2"]


def test_a_batch_of_none_is_none_and_a_training_part_of_none_is_refused(tmp_path):
    table = make_table([2, 3], tmp_path, broken=(0, 1))
    series = SeriesImages(table, CONFIG, False, 0, None)
    found = list(series.make_batches(1, [np.array([0]), np.array([1])], workers=0))
    assert found[0] is None
    assert found[1]["names"] == ["s1"]
    table = make_table([30, 10], tmp_path, broken=range(40))
    series = SeriesImages(table, CONFIG, False, 0, None)
    with pytest.raises(TrainingError, match="epoch 1: no file gives an image"):
        list(series.make_batches(1, [np.array([0, 1])], workers=0))


def draw(epoch, seed, neighbours=(0,)):
    """Three series of four slices with one image: what augmentation makes of it, (3, 4, …)."""
    table = make_table([4, 4, 4])
    table["source"] = [table["source"][0]] * len(table)
    config = ClassifierConfig(image_size=32, crop=False, neighbours=neighbours, missing="edge")
    series = SeriesImages(table, config, True, seed, None)
    (batch,) = series.make_batches(epoch, [np.arange(3)], workers=0)
    shown = batch["image"][batch["parts"].flatten()]
    return shown.view(3, 4 * len(neighbours), *shown.shape[1:])


@pytest.mark.parametrize("neighbours", [(0,), (-1, 0, 1)])
def test_all_slices_of_a_series_are_augmented_alike(neighbours):
    views = draw(1, seed=3, neighbours=neighbours)
    for series in views:
        assert all(torch.equal(each, series[0]) for each in series)
    differing = [not torch.equal(views[0, 0], draw(1, seed)[number, 0])
                 for seed in range(6) for number in (1, 2)]  # fmt: skip
    assert sum(differing) > 6
    epochs = [draw(epoch, seed=3)[0, 0] for epoch in range(1, 9)]
    assert len({image.numpy().tobytes() for image in epochs}) > 3
    assert torch.equal(draw(5, seed=3), draw(5, seed=3))
