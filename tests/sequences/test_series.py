import numpy as np
import pandas as pd
import pytest
import torch
from conftest import golden

from kit.sequences import SeriesDataset, add_deltas, batch_by_length, collate_series


def make_dataset():
    """The golden slices as a slice table in series order, with the rows of their embeddings."""
    values = golden("sequences")
    rank = {series: place for place, series in enumerate(values["series_order"])}
    order = sorted(
        range(len(values["seq"])), key=lambda i: (rank[values["series"][i]], values["seq"][i])
    )
    table = pd.DataFrame({"series": values["series"][order]})
    table[["epidural", "intraparenchymal", "intraventricular"]] = values["labels"][order][:, :3]
    table[["subarachnoid", "subdural", "any"]] = values["labels"][order][:, 3:]
    return values, order, SeriesDataset(values["embeddings"], table, order)


def test_items_equal_the_published_values():
    values, order, dataset = make_dataset()
    assert len(dataset) == 4
    for number in range(4):
        item = dataset[number]
        np.testing.assert_array_equal(add_deltas(item["emb"]), values[f"item{number}.emb"])
        rows = np.array(order)[item["embidx"]]
        np.testing.assert_array_equal(rows, values[f"item{number}.embidx"])


def test_the_batch_equals_the_published_values():
    values, order, dataset = make_dataset()
    items = [dataset[number] for number in range(4)]
    items = [{**item, "embidx": np.array(order)[item["embidx"]]} for item in items]
    for deltas_first in (True, False):
        if deltas_first:
            batch = collate_series([{**item, "emb": add_deltas(item["emb"])} for item in items])
            embeddings = batch["emb"]
        else:
            batch = collate_series(items)
            embeddings = add_deltas(batch["emb"], batch["mask"])
        np.testing.assert_array_equal(embeddings, values["batch.emb"])
        for name in ("mask", "embidx", "labels"):
            np.testing.assert_array_equal(batch[name], values[f"batch.{name}"])


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_deltas_by_hand(kind):
    embeddings = kind([[1.0, 10.0], [4.0, 30.0], [9.0, 60.0]])
    expected = [
        [1, 10, 0, 0, -3, -20],
        [4, 30, 3, 20, -5, -30],
        [9, 60, 5, 30, 0, 0],
    ]
    deltas = add_deltas(embeddings)
    assert type(deltas) is type(embeddings)
    assert deltas.tolist() == expected


def test_a_series_of_one_slice_has_no_differences():
    assert add_deltas(np.array([[2.0, 3.0]])).tolist() == [[2, 3, 0, 0, 0, 0]]
    batch = collate_series(
        [
            {"emb": np.ones((1, 2)), "embidx": np.array([7]), "labels": np.ones((1, 6))},
            {"emb": np.ones((3, 2)), "embidx": np.array([4, 5, 6]), "labels": np.ones((3, 6))},
        ]
    )
    assert batch["embidx"].tolist() == [[-1, -1, 7], [4, 5, 6]]
    assert batch["mask"].tolist() == [[False, False, True], [True, True, True]]
    assert batch["emb"][0].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert batch["labels"][0].sum() == 6


def test_a_slice_without_embedding_is_left_out():
    table = pd.DataFrame({"series": ["a", "a", "a", "b"]})
    dataset = SeriesDataset(np.arange(8.0).reshape(4, 2), table, [2, -1, 0, -1])
    assert len(dataset) == 1
    assert dataset[0]["embidx"].tolist() == [0, 2]
    assert dataset[0]["emb"].tolist() == [[4, 5], [0, 1]]


def test_a_table_whose_series_are_torn_apart_is_refused():
    table = pd.DataFrame({"series": ["a", "b", "a"]})
    with pytest.raises(ValueError, match="not next to each other"):
        SeriesDataset(np.zeros((3, 2)), table, [0, 1, 2])


def test_inference_batches_hold_every_series_once_and_one_length_each():
    lengths = np.array([3, 5, 3, 3, 60, 5])
    batches = list(batch_by_length(lengths, slices=10))
    assert sorted(np.concatenate(batches)) == [0, 1, 2, 3, 4, 5]
    assert [lengths[batch].tolist() for batch in batches] == [[3, 3, 3], [5, 5], [60]]
