import random

import numpy as np
import pytest
import torch
from conftest import shared

from kit.dicom.parsing import DicomError
from kit.dicom.pixels import read_hounsfield
from kit.images import SliceDataset, choose_batch, load_batches, make_augmentation, read_image
from kit.slices.competition_files import index_competition
from kit.windowing import crop_to_head, resize_image, window_image


@pytest.fixture(scope="module")
def slices(small_data):
    table, _ = index_competition(small_data)
    return table[table["split"] == "train"].reset_index(drop=True)


def test_an_image_is_the_windowed_cropped_and_resized_slice():
    path = shared("data/dcm_qa_ct/GE/14.dcm")
    image = read_image(str(path), 480)
    expected = resize_image(crop_to_head(window_image(read_hounsfield(path))), 480)
    assert image.shape == (480, 480, 3)
    np.testing.assert_array_equal(image, expected)
    whole = read_image(str(path), 480, crop=False)
    assert (whole[:20] == 0).all()  # air above the head, which the crop removes
    assert (image[0] > 0).any()


def test_augmentation_follows_from_seed_epoch_and_row_alone(slices):
    plain = SliceDataset(slices, 64)
    dataset = SliceDataset(slices, 64, augment=True, seed=5)
    first = [dataset[row]["image"] for row in range(30)]
    again = [dataset[row]["image"] for row in reversed(range(30))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    dataset.epoch = 1
    assert any((dataset[row]["image"] != first[row]).any() for row in range(30))
    changed = sum((plain[row]["image"] != first[row]).any() for row in range(30))
    assert 18 <= changed <= 30  # 1 − 0.5 · 0.7 · 0.5 = 0.825 of them


def test_the_augmentation_has_the_published_shares():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    views = {
        "same": image,
        "flip": image[:, ::-1],
        "transpose": image.transpose(1, 0, 2),
        "both": image[:, ::-1].transpose(1, 0, 2),
    }
    transform = make_augmentation()
    counts = dict.fromkeys([*views, "moved"], 0)
    for seed in range(600):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = transform(image=image)["image"]
        match = [name for name, view in views.items() if np.array_equal(view, result)]
        counts[match[0] if match else "moved"] += 1
    assert counts["moved"] / 600 == pytest.approx(0.3, abs=0.06)
    for name in views:
        assert counts[name] / 600 == pytest.approx(0.7 / 4, abs=0.05)


def test_the_augmentation_scales_both_axes_alike():
    affine = make_augmentation().transforms[1]
    draws = [affine.get_params_dependent_on_data({"shape": (64, 64, 3)}, {}) for _ in range(50)]
    scales = np.array([[draw["scale"]["x"], draw["scale"]["y"]] for draw in draws])
    np.testing.assert_array_equal(scales[:, 0], scales[:, 1])
    assert 0.95 <= scales.min() < 0.97
    assert 1.03 < scales.max() <= 1.05


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_order_labels_and_names(slices, workers):
    dataset = SliceDataset(slices, 32)
    rows = [np.array([3, 1, 2]), np.array([7])]
    first, second = load_batches(dataset, rows, workers)
    assert first["rows"].tolist() == [3, 1, 2]
    assert first["image"].shape == (3, 32, 32, 3)
    assert first["names"] == slices["path"].iloc[[3, 1, 2]].tolist()
    labels = slices[["epidural", "any"]].to_numpy()[[3, 1, 2]]
    np.testing.assert_array_equal(first["labels"][:, [0, 5]], labels)
    assert second["failed"] == []


def test_an_unreadable_file_is_left_out_with_its_reason(slices, tmp_path):
    table = slices.head(3).copy()
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"not DICOM")
    table.loc[1, "path"] = str(broken)
    dataset = SliceDataset(table, 32)
    (batch,) = load_batches(dataset, [np.array([0, 1, 2])], 0)
    assert batch["rows"].tolist() == [0, 2]
    assert batch["failed"] == [(1, "not a DICOM file")]
    (nothing,) = load_batches(dataset, [np.array([1])], 0)
    assert nothing["image"] is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_stops_and_is_named(slices, tmp_path, workers):
    table = slices.head(3).copy()
    table.loc[2, "path"] = str(tmp_path / "gone.dcm")
    with pytest.raises(FileNotFoundError, match="put it back") as said:
        list(load_batches(SliceDataset(table, 32), [np.array([0, 1, 2])], workers))
    assert said.value.filename == str(tmp_path / "gone.dcm")


def test_a_table_without_labels_gives_none(slices):
    item = SliceDataset(slices.drop(columns="any"), 32)[0]
    assert "labels" not in item


def test_a_slice_with_values_that_are_not_finite_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("kit.images.read_hounsfield", lambda *_: np.full((4, 4), np.nan))
    with pytest.raises(DicomError, match=r"x\.dcm: the slice holds values that are not finite"):
        read_image("x.dcm", 8)


def test_a_slice_for_which_the_memory_does_not_suffice_is_refused_by_name(slices, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr("kit.images.window_image", fail)
    item = SliceDataset(slices, 32)[0]
    assert item["reason"] == "there is not enough memory for its pixels"
    assert not item["missing"]


def test_a_cpu_takes_few_large_images_at_once_and_many_small_ones():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [choose_batch(size, cpu) for size in (64, 181, 224, 480, 2048)] == [32, 32, 20, 4, 1]
    assert choose_batch(480, gpu) == 32
