import errno
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, shared
from dicom_files import write_slice

from kit.dicom.parsing import DicomError
from kit.dicom.pixels import read_hounsfield
from kit.images import (
    SliceDataset,
    choose_batch,
    choose_reading,
    join_neighbours,
    load_batches,
    make_augmentation,
    read_image,
)
from kit.processes import ScarcityError
from kit.slices import index_slices
from kit.slices.competition_files import index_competition
from kit.windowing import InputConfig, crop_to_head, resize_image, window_image


def show(size, **options):
    return InputConfig(image_size=size, **options)


@pytest.fixture(scope="module")
def slices(small_data):
    table, _ = index_competition(small_data)
    return table[table["split"] == "train"].reset_index(drop=True)


def test_an_image_is_the_windowed_cropped_and_resized_slice():
    path = shared("data/dcm_qa_ct/GE/14.dcm")
    image = read_image(str(path), InputConfig())
    expected = resize_image(crop_to_head(window_image(read_hounsfield(path))), 480)
    assert image.shape == (480, 480, 3)
    np.testing.assert_array_equal(image, expected)
    whole = read_image(str(path), InputConfig(crop=False))
    assert (whole[:20] == 0).all()  # air above the head, which the crop removes
    assert (image[0] > 0).any()


def test_augmentation_follows_from_seed_epoch_and_row_alone(slices):
    plain = SliceDataset(slices, show(64))
    dataset = SliceDataset(slices, show(64), augment=True, seed=5)
    first = [dataset[row]["slices"][0] for row in range(30)]
    again = [dataset[row]["slices"][0] for row in reversed(range(30))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    dataset.epoch = 1
    assert any((dataset[row]["slices"][0] != first[row]).any() for row in range(30))
    changed = sum((plain[row]["slices"][0] != first[row]).any() for row in range(30))
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
    dataset = SliceDataset(slices, show(32))
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
    dataset = SliceDataset(table, show(32))
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
        list(load_batches(SliceDataset(table, show(32)), [np.array([0, 1, 2])], workers))
    assert said.value.filename == str(tmp_path / "gone.dcm")


def test_a_table_without_labels_gives_none(slices):
    item = SliceDataset(slices.drop(columns="any"), show(32))[0]
    assert "labels" not in item


def test_a_slice_with_values_that_are_not_finite_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("kit.images.read_hounsfield", lambda *_: np.full((4, 4), np.nan))
    with pytest.raises(DicomError, match=r"x\.dcm: the slice holds values that are not finite"):
        read_image("x.dcm", show(8))


def test_a_slice_for_which_the_memory_does_not_suffice_is_refused_by_name(slices, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("kit.images.render_image", fail)
    item = SliceDataset(slices, show(32))[0]
    assert item["reason"] == "there is not enough memory for its pixels"
    assert not item["missing"]


def test_a_cpu_takes_few_large_images_at_once_and_many_small_ones():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [choose_batch(size, cpu) for size in (64, 181, 224, 480, 2048)] == [32, 32, 20, 4, 1]
    assert choose_batch(480, gpu) == 32


def write_series(folder, values, series="1.9"):
    """A series of one slice per value, each of that one value in HU; its table."""
    for z, value in enumerate(values):
        place = {"SOPInstanceUID": f"{series}.{z}", "ImagePositionPatient": [0, 0, 5 * z]}
        stored = np.full((8, 8), value, np.int16)
        write_slice(folder / f"{series}-{z}.dcm", stored, SeriesInstanceUID=series, **place)
    return index_slices(folder)[0]


# What a slice is seen with: one window whose gray value is the HU, and no shift by the minimum.
def see(*neighbours, **options):
    plain = {"crop": False, "subtract_minimum": False, "scale": "unit", "windows": ((50, 100),)}
    plain |= {"mean": (0,), "std": (1,), "image_size": 8, "neighbours": neighbours}
    return InputConfig(**{**plain, **options})


def gather(table, config, batches, workers=0):
    """What the model takes for each slice of the batches, as HU by channel."""
    found = {}
    for batch in load_batches(SliceDataset(table, config), batches, workers):
        seen = join_neighbours(batch)
        assert seen.shape[1:] == (8, 8, config.channels)
        assert torch.equal(seen, seen[:, :1, :1].expand_as(seen))
        for row, values in zip(batch["rows"], seen[:, 0, 0].numpy(), strict=True):
            found[int(row)] = np.round(values * 100).astype(int).tolist()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slice_is_seen_with_its_neighbours_in_the_order_of_the_offsets(tmp_path, workers):
    write_series(tmp_path, [10, 20, 30, 40], "1.1")
    table = write_series(tmp_path, [50, 60], "1.2")
    batches = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    assert gather(table, see(-1, 0, 1), batches, workers) == {
        0: [0, 10, 20],  # below the first slice there is none: zeros after windowing
        1: [10, 20, 30],
        2: [20, 30, 40],
        3: [30, 40, 0],  # the next row is another series'
        4: [0, 50, 60],
        5: [50, 60, 0],
    }
    assert gather(table, see(0, -1, 2), batches)[1] == [20, 10, 40]
    assert gather(table, see(-2, 0, missing="edge"), batches)[1] == [10, 20]


def test_channels_go_slice_by_slice_and_in_each_window_by_window(tmp_path):
    table = write_series(tmp_path, [10, 20, 30])
    windows = {"windows": ((50, 100), (0, 100)), "mean": (0, 0), "std": (1, 1)}
    # The second window begins at −50: its gray value is HU + 50.
    found = gather(table, see(-1, 0, 1, **windows), [np.array([1])])
    assert found == {1: [10, 60, 20, 70, 30, 80]}


def test_a_gap_is_no_end_of_the_series(tmp_path):
    table = write_series(tmp_path, [10, 20, 30, 40]).drop(index=2).reset_index(drop=True)
    assert gather(table, see(-1, 0, 1), [np.array([1])]) == {1: [10, 20, 40]}


def test_a_neighbour_that_cannot_be_read_is_passed_over_as_if_it_were_not_there(tmp_path):
    table = write_series(tmp_path, [10, 20, 30, 40])
    (tmp_path / "broken.dcm").write_bytes(b"not DICOM")
    table.loc[1, "path"] = str(tmp_path / "broken.dcm")
    rows = [np.array([0, 1]), np.array([2, 3])]
    without = gather(table.drop(index=1).reset_index(drop=True), see(-1, 0, 1), [np.arange(3)])
    found = gather(table, see(-1, 0, 1), rows)
    assert found == {0: [0, 10, 30], 2: [10, 30, 40], 3: [30, 40, 0]}
    assert list(found.values()) == list(without.values())


def test_a_neighbour_that_is_gone_stops_and_is_named(tmp_path):
    table = write_series(tmp_path, [10, 20, 30])
    (tmp_path / "1.9-2.dcm").unlink()
    with pytest.raises(FileNotFoundError, match="put it back") as said:
        gather(table, see(-1, 0, 1), [np.array([0, 1])])
    assert said.value.filename == str(tmp_path / "1.9-2.dcm")


@pytest.mark.parametrize(("neighbours", "most"), [((0,), 64), ((-1, 0, 1), 64 * 1.2)])
def test_a_file_is_read_once_for_all_slices_that_see_it(tmp_path, monkeypatch, neighbours, most):
    table, reads = write_series(tmp_path, range(64)), []

    def count(path, *rest):
        reads.append(path)
        return read_hounsfield(path, *rest)

    monkeypatch.setattr("kit.images.read_hounsfield", count)
    # Each batch by a worker of its own, which remembers nothing of the batch before.
    batches = 64 // choose_reading(see(*neighbours), 4)
    for batch in np.split(np.arange(64), batches):
        gather(table, see(*neighbours), [batch])
    assert set(reads) == set(table["path"])
    assert len(reads) <= most


def test_augmentation_moves_a_slice_and_its_neighbours_alike(slices):
    config = show(64, neighbours=(-1, 0, 1), crop=False)
    alone = show(64, crop=False)
    row = int(np.flatnonzero(slices["seq"] == 3)[0])
    middle, moved = [], 0
    for seed in range(20):
        below, here, above = SliceDataset(slices, config, True, seed)[row]["slices"]
        middle.append((here == SliceDataset(slices, alone, True, seed)[row]["slices"][0]).all())
        (expected,) = SliceDataset(slices.iloc[[row - 1]], alone)[0]["slices"]
        views = [expected, expected[:, ::-1], expected.transpose(1, 0, 2)]
        views.append(views[1].transpose(1, 0, 2))
        same = [(below == view).all() for view in views]
        (plain,) = SliceDataset(slices.iloc[[row + 1]], alone)[0]["slices"]
        views = [plain, plain[:, ::-1], plain.transpose(1, 0, 2)]
        views.append(views[1].transpose(1, 0, 2))
        assert same == [(above == view).all() for view in views]
        moved += not same[0]
    assert all(middle)
    assert moved > 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_keeps_its_images_while_others_are_read(slices, workers):
    """Workers write into memory that is used again; what was handed out must not change."""
    dataset = SliceDataset(slices, show(16))
    rows = np.array_split(np.arange(len(slices)), 40)
    for batch, expected in zip(list(load_batches(dataset, rows, workers)), rows, strict=True):
        assert batch["rows"].tolist() == expected.tolist()
        wanted = np.stack([dataset[row]["slices"][0] for row in expected])
        np.testing.assert_array_equal(batch["image"], wanted)


class _Threads(SliceDataset):
    """Images that tell on how many threads OpenCV works."""

    def __getitem__(self, row):
        return {"row": row, "slices": [np.full((8, 8, 3), cv2.getNumThreads(), np.uint8)]}


def test_opencv_works_on_one_thread_in_each_worker_and_as_before_here(slices):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        (batch,) = load_batches(_Threads(slices, show(8)), [np.arange(2)], 1)
        assert batch["image"].unique().tolist() == [1]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


READ = """
import sys, numpy, pandas
from kit.images import SliceDataset, load_batches
from kit.windowing import InputConfig
table = pandas.DataFrame({"path": sys.argv[1:]})
rows = numpy.split(numpy.arange(len(table)), 6)
dataset = SliceDataset(table, InputConfig(image_size=256))
print(sum(len(batch["rows"]) for batch in load_batches(dataset, rows, 2)))
"""


def read_with_shared_memory(slices, mount: str) -> subprocess.CompletedProcess:
    """Read 24 slices by two workers in batches of 786 kB, after `mount` of an own /dev/shm."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$@"', sys.executable, READ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        [*command, *slices["path"].head(24)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_images_need_no_room_in_dev_shm(slices):
    """Docker gives 64 MB; a batch that did not fit had the command wait for ever."""
    done = read_with_shared_memory(slices, "mount -t tmpfs -o size=64k tmpfs /dev/shm")
    assert (done.returncode, done.stdout) == (0, "24\n"), done.stderr


def test_a_dev_shm_without_any_room_is_named_with_what_to_do(slices):
    fill = "{ head -c 99999 /dev/zero > /dev/shm/full; true; }"
    done = read_with_shared_memory(slices, f"mount -t tmpfs -o size=64k tmpfs /dev/shm && {fill}")
    sentence = "shared memory (/dev/shm) is full: use --workers 0, or give more of it"
    assert sentence in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_open_files_are_not_the_fault_of_a_slice(slices, monkeypatch, workers):
    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("kit.dicom.parsing.open_file", fail)
    with pytest.raises(ScarcityError, match="too many files are open: raise the limit"):
        list(load_batches(SliceDataset(slices, show(32)), [np.arange(4)], workers))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_too_little_memory_for_a_batch_arrives_as_a_sentence(slices, monkeypatch, workers, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("kit.processes.reading._Reader._open_slot", fail)
    with pytest.raises(ScarcityError, match="not enough memory: use fewer --workers"):
        list(load_batches(SliceDataset(slices, show(32)), [np.arange(4)], workers))


def test_too_little_memory_for_all_batches_arrives_as_a_sentence(slices, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("kit.processes.reading.mmap.mmap", fail)
    with pytest.raises(ScarcityError, match="not enough memory: use fewer --workers"):
        list(load_batches(SliceDataset(slices, show(32)), [np.arange(4)], 1))
