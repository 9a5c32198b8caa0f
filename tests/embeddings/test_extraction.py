import json

import numpy as np
import pytest
import torch

from kit import InputError, images
from kit.classifier import Classifier, load_classifier
from kit.embeddings import EmbeddingStore, extract_embeddings, extraction, writer
from kit.images import SliceDataset, join_neighbours, read_image, stack_slices
from kit.runs.tables import read_slices
from kit.training.checkpoints import TrainingError, load_weights, save_tensors, save_weights
from kit.training.config import ClassifierConfig
from kit.training.loop import OutOfTime
from kit.training.tuning import Tuning

CPU = torch.device("cpu")


@pytest.fixture
def weights(small_run):
    return small_run.classifier(0) / "epoch1.safetensors"


def test_every_slice_is_embedded_and_equals_the_models_own_answer(small_run, weights):
    slices = read_slices(small_run)
    store = EmbeddingStore(small_run.store(0, 1))
    assert store.embeddings.dtype == np.float16
    assert list(store.ids) == list(slices["SOPInstanceUID"])
    model = load_classifier(weights)
    rows = [0, 100, len(slices) - 1]
    images = [read_image(slices["path"][row], model.config) for row in rows]
    with torch.inference_mode():
        expected = model.embed_views(torch.from_numpy(np.stack(images)))
        probabilities = model.head(expected).sigmoid()
    stored = store.embeddings[rows].astype(np.float32)
    assert np.abs(stored - expected.numpy()).max() < 0.02 * expected.abs().max()  # bfloat16
    found = store.probabilities(slices["SOPInstanceUID"].iloc[rows])
    np.testing.assert_allclose(found, probabilities, atol=0.02)


def test_an_embedding_that_float16_cannot_hold_stops_it_naming_the_file(
    small_run, weights, tmp_path
):
    tensors, metadata = load_weights(weights)
    name = next(name for name in tensors if name.startswith("backbone.layer4") and "bn3.w" in name)
    tensors[name] += 1e7
    save_tensors(tmp_path / "large.safetensors", tensors, metadata)
    slices = read_slices(small_run).head(3)
    with pytest.raises(TrainingError, match=r"ID_.*\.dcm: its embedding is not finite in float16"):
        extract_embeddings(slices, tmp_path / "large.safetensors", tmp_path / "store", CPU, 0)
    assert not (tmp_path / "store" / "store.json").exists()


def test_a_stopped_extraction_goes_on_to_the_same_bytes(small_run, weights, tmp_path, monkeypatch):
    slices = read_slices(small_run).head(120)
    whole = extract_embeddings(slices, weights, tmp_path / "whole", CPU, 1)
    served = 0
    original = images.load_batches

    def stop_midway(*arguments):
        nonlocal served
        for batch in original(*arguments):
            served += 1
            if served == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(writer, "FLUSH_SECONDS", -1)
    monkeypatch.setattr(images, "load_batches", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(slices, weights, tmp_path / "stopped", CPU, 1)
    monkeypatch.setattr(images, "load_batches", original)
    assert not (tmp_path / "stopped" / "store.json").exists()
    marker = json.loads((tmp_path / "stopped" / "progress0of1.json").read_text())
    assert marker["done"] == [[0, 64]]
    with pytest.raises(OutOfTime, match="after 96 slices"):
        extract_embeddings(slices, weights, tmp_path / "stopped", CPU, 1, deadline=0.0)
    store = extract_embeddings(slices, weights, tmp_path / "stopped", CPU, 1)
    np.testing.assert_array_equal(store.embeddings, whole.embeddings)
    np.testing.assert_array_equal(store.logits, whole.logits)
    assert sorted(path.name for path in store.directory.iterdir()) == [
        "embeddings.npy",
        "ids.txt",
        "logits.npy",
        "store.json",
    ]


def test_unreadable_slices_are_listed_and_have_no_row(small_run, weights, tmp_path):
    slices = read_slices(small_run).head(6).copy()
    slices.loc[[0, 4], "path"] = str(tmp_path / "empty.dcm")
    (tmp_path / "empty.dcm").touch()
    store = extract_embeddings(slices, weights, tmp_path / "store", CPU, 0, batch_size=2)
    names = slices["SOPInstanceUID"]
    assert store.failed == {name: "not a DICOM file" for name in names.iloc[[0, 4]]}
    assert store.find_rows(names).tolist() == [-1, 1, 2, 3, -1, 5]
    assert np.isnan(store.probabilities(names)[[0, 4]]).all()


def test_other_weights_make_the_store_anew(small_run, weights, tmp_path):
    slices = read_slices(small_run).head(4)
    first = extract_embeddings(slices, weights, tmp_path / "store", CPU, 0)
    before = np.array(first.embeddings)
    other = small_run.classifier(1) / "epoch1.safetensors"
    second = extract_embeddings(slices, other, tmp_path / "store", CPU, 0)
    assert np.abs(before - second.embeddings).max() > 0.01


def test_a_model_that_sees_neighbours_embeds_a_series_as_if_at_once(small_run, tmp_path):
    slices = read_slices(small_run)
    slices = slices[slices["series"].isin(slices["series"].unique()[:3])].reset_index(drop=True)
    options = {"architecture": "resnet10t", "architecture_options": {"stem_width": 8}}
    options |= {"image_size": 64, "crop": False, "neighbours": (-1, 0, 1), "opt_level": "O0"}
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(**options, test_augmentation=False)).eval()
    save_weights(tmp_path / "weights.safetensors", model)
    args = slices, tmp_path / "weights.safetensors"
    store = extract_embeddings(*args, tmp_path / "two", CPU, 2, batch_size=5)
    dataset = SliceDataset(slices, model.config)
    items = [dataset[row] for row in range(len(slices))]
    usable = [row for row, item in enumerate(items) if "slices" in item]
    images = join_neighbours(stack_slices([items[row]["slices"] for row in usable]))
    assert images.shape == (len(usable), 64, 64, 9)
    with torch.inference_mode():
        expected = model.embed(images)
    assert (images[0, ..., :3] == 0).all()  # below the first slice there is none
    np.testing.assert_allclose(store.embeddings[usable], expected, atol=2e-3)


@pytest.mark.parametrize("way", [Tuning(channels_last=False), Tuning(compiled=True)])
def test_the_ways_of_a_gpu_give_the_same_embeddings(weights, monkeypatch, way):
    """The layout, and the batch filled up for a compiled model, on the CPU."""
    monkeypatch.setattr(torch, "compile", lambda embed, dynamic: embed)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (7, 64, 64, 3), dtype=np.uint8))
    batch = {"image": image, "parts": torch.arange(7)[:, None]}
    embedder = extraction.Embedder(weights, CPU, 3)
    sizes = []
    with torch.inference_mode():
        expected = embedder(batch)
        embedder.filled = True
        embedder._set_way(way)
        embedder.model.backbone.register_forward_pre_hook(
            lambda _, given: sizes.append(len(given[0]))
        )
        found = embedder(batch)
    assert sizes == [3] * 9  # three views of three pieces, the last with two images of zeros
    for one, other in zip(found, expected, strict=True):
        assert len(one) == 7
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


def test_a_cpu_tries_nothing_and_notes_nothing(weights):
    assert extraction.Embedder(weights, CPU, 3).choose_way(10**9) == {}


def test_a_note_of_a_store_that_is_none_is_named(small_run, weights, tmp_path):
    (tmp_path / "store.json").write_text("[]")
    slices = read_slices(small_run).head(3)
    with pytest.raises(InputError, match=r"store\.json: not a JSON object"):
        extract_embeddings(slices, weights, tmp_path, CPU, 0)
