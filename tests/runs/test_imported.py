"""Published embeddings, `.npz` files with their ids, as a store."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from kit import InputError, KitError
from kit.runs.imported import import_published


def test_published_embeddings_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(1000, 40)).astype(np.float32)
    names = [f"ID_{number:09x}" for number in range(1000)]
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "emb_trn.npz", values)
        pd.DataFrame({"Image": names}).to_csv(tmp_path / "ids.csv")
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        files = [(tmp_path / "emb_trn.npz", tmp_path / "ids.csv")]
        store = import_published(files, tmp_path / "store")
        np.testing.assert_array_equal(store.embeddings, values.astype(np.float16))
        assert store.find_rows([names[7], "ID_stranger"]).tolist() == [7, -1]


@pytest.mark.parametrize(
    ("values", "count", "reason"),
    [
        (np.zeros((3, 2), np.float32), 4, "3 embeddings for the 4 ids"),
        (np.zeros(3, np.float32), 3, "not a table of numbers"),
        (np.array([["a"], ["b"]], dtype=object), 2, "object"),
        (np.full((2, 2), 1e6, np.float32), 2, "float16 cannot hold"),
    ],
)
def test_published_embeddings_that_cannot_be_right_are_refused(tmp_path, values, count, reason):
    np.savez(tmp_path / "e.npz", values)
    pd.DataFrame({"SOPInstanceUID": [str(n) for n in range(count)]}).to_csv(tmp_path / "ids.csv")
    with pytest.raises(InputError, match=f"e.npz: .*{reason}"):
        import_published([(tmp_path / "e.npz", tmp_path / "ids.csv")], tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


@pytest.mark.parametrize("name", ["e.npz", "ids.csv"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    np.savez(tmp_path / "e.npz", np.zeros((1, 2), np.float32))
    (tmp_path / "ids.csv").write_text("Image\na\n")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(KitError, match=f"{name}: .*not a regular file"):
        import_published([(tmp_path / "e.npz", tmp_path / "ids.csv")], tmp_path / "store")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [("e.npz", b"no archive", "e.npz: not published"), ("ids.csv", b'"\xff', "ids.csv: not a CSV")],
)
def test_files_that_cannot_be_read_are_named(tmp_path, file, content, reason):
    np.savez(tmp_path / "e.npz", np.zeros((1, 2), np.float32))
    (tmp_path / "ids.csv").write_text("Image\na\n")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        import_published([(tmp_path / "e.npz", tmp_path / "ids.csv")], tmp_path / "store")
