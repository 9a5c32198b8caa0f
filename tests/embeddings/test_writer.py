"""Stores that several processes fill, and whose number changes from one call to the next."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from dicom_files import write_slice

from kit.classifier import Classifier, ClassifierConfig
from kit.embeddings import EmbeddingStore, extract_embeddings, writer
from kit.embeddings.store import PAGE
from kit.files import hash_file
from kit.recipes import SMALL_RESNEXT
from kit.training.checkpoints import save_weights

CPU = torch.device("cpu")
SLICES = 62

# One process of those that fill a store: it notes the rows that it embeds, and stops after a batch
# of two unless it is to end.
EXTRACT = """
import sys, os
from pathlib import Path
import pandas as pd, torch
from kit.embeddings import extract_embeddings, extraction, writer
from kit.training.distributed import join_processes
from kit.training.loop import OutOfTime
folder, ends = Path(sys.argv[1]), sys.argv[2] == "ends"
writer.BLOCK, writer.FLUSH_SECONDS = 8, -1
predict = extraction.predict
def note(forward, batches, *arguments):
    for batch, outputs in predict(forward, batches, *arguments):
        with open(folder / f"rows{os.getpid()}.txt", "a") as file:
            file.writelines(f"{row}\\n" for row in batch["rows"])
        yield batch, outputs
extraction.predict = note
table = pd.read_csv(folder / "table.csv")
weights = folder / "epoch1.safetensors"
with join_processes():
    try:
        extract_embeddings(
            table, weights, folder / "store", torch.device("cpu"), 0, 2,
            deadline=None if ends else 0.0,
        )
    except OutOfTime:
        assert not ends
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Slices, of which the fifth is no image, and a small classifier."""
    folder = tmp_path_factory.mktemp("extraction")
    paths = [folder / f"{number}.dcm" for number in range(SLICES)]
    for number, path in enumerate(paths):
        stored = np.random.default_rng(number).integers(-1000, 1000, (32, 32), dtype=np.int16)
        write_slice(path, stored)
    paths[4].write_bytes(b"")
    names = [path.stem for path in paths]
    pd.DataFrame({"path": paths, "SOPInstanceUID": names}).to_csv(folder / "table.csv", index=False)
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture="resnext50_32x4d",
        architecture_options=SMALL_RESNEXT,
        image_size=32,
        crop=False,
    )
    save_weights(folder / "epoch1.safetensors", Classifier(config))
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return pd.read_csv(folder / "table.csv", dtype=str)


@pytest.fixture(scope="module")
def whole(folder, table):
    """The store as one process makes it, undisturbed."""
    block, writer.BLOCK = writer.BLOCK, 8
    try:
        return extract_embeddings(table, folder / "epoch1.safetensors", folder / "whole", CPU, 0, 2)
    finally:
        writer.BLOCK = block


def extract(folder, processes: int, how: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    (folder / "extract.py").write_text(EXTRACT)
    done = subprocess.run(
        [sys.executable, *launcher, folder / "extract.py", folder, how],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_number_of_processes_may_change_and_nothing_is_embedded_twice(folder, whole):
    extract(folder, 2, "stops")
    extract(folder, 1, "stops")
    notes = [json.loads(path.read_text()) for path in (folder / "store").glob("progress*.json")]
    # Two processes share eight blocks of eight rows; then one goes on where the first stopped.
    assert sorted(note["done"] for note in notes) == [[[0, 2], [32, 34]], [[2, 4]]]
    assert not (folder / "store" / "store.json").exists()
    extract(folder, 3, "ends")
    rows = Counter(
        int(row) for path in folder.glob("rows*.txt") for row in path.read_text().split()
    )
    assert rows == Counter(set(range(SLICES)) - {4})
    for name in ("embeddings.npy", "logits.npy", "ids.txt", "store.json"):
        assert (folder / "store" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert len(list((folder / "store").iterdir())) == 4
    assert EmbeddingStore(folder / "store").failed == {"4": "not a DICOM file"}


def test_shares_are_whole_pages_of_both_arrays(folder, tmp_path, monkeypatch):
    shapes = {"embeddings": (5000, 2048), "logits": (5000, 6)}
    shares = []
    for rank in range(3):
        monkeypatch.setattr(writer, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(writer, "world_size", lambda: 3)
        if rank == 0:
            filled = writer.open_store(tmp_path, 5000, 2048, {"weights_sha256": "a"})
        filled = writer.StoreWriter(tmp_path, {"weights_sha256": "a"}, filled.earlier)
        batches = filled.list_batches(48)
        assert max(map(len, batches)) == 48
        shares.append(np.concatenate(batches))
    assert np.concatenate(shares).tolist() == list(range(5000))
    for name in shapes:
        array = getattr(filled, name)
        starts = [array.offset + share[0] * array.strides[0] for share in shares]
        assert all(start % PAGE == 0 for start in starts)


def write_earlier(directory, whole, marker: str, note: dict) -> None:
    """A store that version 0.1.0 had half done, with values in it that tell it from others."""
    directory.mkdir()
    for name in ("embeddings", "logits"):
        np.save(directory / f"{name}.npy", np.full_like(getattr(whole, name), 7))
        (directory / f"{name}.npy").rename(directory / f"{name}.npy.part")
    (directory / marker).write_text(json.dumps(note))


def test_a_half_done_store_of_0_1_0_is_continued(folder, table, whole, tmp_path):
    """The second of two processes had noted 20 rows of its half, the first none of its own."""
    weights = folder / "epoch1.safetensors"
    note = {"done": 51, "failed": {"33": "gone"}, "weights_sha256": hash_file(weights)}
    write_earlier(tmp_path / "store", whole, "progress1of2.json", note)
    store = extract_embeddings(table, weights, tmp_path / "store", CPU, 0, 2)
    kept = np.zeros(SLICES, bool)
    kept[31:51] = True
    assert (store.embeddings[kept] == 7).all()
    assert (store.logits[kept] == 7).all()
    good = ~kept & (np.arange(SLICES) != 4)
    # Batches begin elsewhere now, and a sum may be rounded in another order.
    np.testing.assert_allclose(store.embeddings[good], whole.embeddings[good], rtol=2e-3, atol=1e-3)
    assert store.failed == {"4": "not a DICOM file", "33": "gone"}


@pytest.mark.parametrize("change", ["weights", "slices"])
def test_what_was_done_by_other_weights_or_for_other_slices_is_not_kept(
    folder, table, whole, tmp_path, change
):
    weights = folder / "epoch1.safetensors"
    digest = "other" if change == "weights" else hash_file(weights)
    note = {"done": [[0, 40]], "failed": {}, "weights_sha256": digest}
    write_earlier(tmp_path / "store", whole, "progress0of1.json", note)
    if change == "slices":
        np.save(tmp_path / "logits.npy", np.zeros((SLICES + 1, 6), np.float32))
        (tmp_path / "logits.npy").rename(tmp_path / "store" / "logits.npy.part")
    store = extract_embeddings(table, weights, tmp_path / "store", CPU, 0, 2)
    assert not (store.embeddings == 7).any()


def test_a_store_killed_between_its_last_two_files_is_not_made_again(
    folder, table, whole, tmp_path, monkeypatch
):
    weights = folder / "epoch1.safetensors"

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "seal_store", die)
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(table, weights, tmp_path / "store", CPU, 0, 2)
    monkeypatch.undo()
    assert (tmp_path / "store" / "embeddings.npy").exists()
    monkeypatch.setattr("kit.images.read_image", die)
    store = extract_embeddings(table, weights, tmp_path / "store", CPU, 0, 2)
    np.testing.assert_array_equal(store.embeddings, whole.embeddings)


def test_rows_that_nobody_noted_are_not_taken_for_done(folder, table, tmp_path, monkeypatch):
    """As when a shared file system does not show the note of another machine yet."""
    weights = folder / "epoch1.safetensors"
    monkeypatch.setattr(writer.StoreWriter, "flush", lambda self: None)
    with pytest.raises(RuntimeError, match="no process noted 62 slices as done"):
        extract_embeddings(table, weights, tmp_path / "store", CPU, 0, 2)
    assert not (tmp_path / "store" / "store.json").exists()
