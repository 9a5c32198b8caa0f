import shutil

import numpy as np
import pytest

from kit.embeddings import EmbeddingStore, create_array
from kit.embeddings.store import PAGE


@pytest.mark.parametrize("text", ["[]", "{}", '{"failed": 3}'])
def test_a_store_of_another_kind_is_refused_by_name(small_run, tmp_path, text):
    shutil.copytree(small_run.store(0, 1), tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(text)
    with pytest.raises(ValueError, match="store: not an embedding store"):
        EmbeddingStore(tmp_path / "store")


@pytest.mark.parametrize("values", [np.zeros(5), np.array(0.5), np.zeros((5, 2), "U3")])
def test_embeddings_of_another_kind_are_refused_by_name(small_run, tmp_path, values):
    shutil.copytree(small_run.store(0, 1), tmp_path / "store")
    np.save(tmp_path / "store" / "embeddings.npy", values)
    with pytest.raises(ValueError, match=r"embeddings\.npy is no float16 table"):
        EmbeddingStore(tmp_path / "store")


def test_a_folder_that_is_no_store_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: not an embedding store"):
        EmbeddingStore(tmp_path)


def test_the_rows_of_an_array_begin_with_a_page(tmp_path):
    array = create_array(tmp_path / "a.npy", (3, 2048), np.float16)
    array[1] = 2.5
    array.flush()
    assert array.offset == PAGE
    assert (tmp_path / "a.npy").stat().st_size == PAGE + 3 * 4096
    with open(tmp_path / "a.npy", "rb") as file:
        file.seek(PAGE + 4096)
        assert np.frombuffer(file.read(4096), np.float16).tolist() == [2.5] * 2048
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == np.float16
    assert loaded.tolist() == array.tolist()
