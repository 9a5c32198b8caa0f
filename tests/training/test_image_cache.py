"""Images that are kept while they are first read: whole, the same from every process, or not."""

import errno
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from kit import InputError, images
from kit.classifier import train_classifier
from kit.recipes import find_recipe
from kit.slices.competition_files import index_competition
from kit.training import image_cache
from kit.training.checkpoints import load_weights
from kit.training.image_cache import ImageCache, keep_images, open_cache

SHAPE = (24, 24, 3)


def draw_image(number):
    rng = np.random.default_rng(number)
    return cv2.GaussianBlur(rng.integers(0, 256, SHAPE, np.uint8), (5, 5), 2)


def fill(cache, places):
    return {place: cache.read(place, lambda place=place: draw_image(place)) for place in places}


def refuse():
    raise AssertionError("read again")


def test_an_image_is_read_once_and_is_the_same_ever_after(tmp_path):
    cache = ImageCache(tmp_path / "images", 4, SHAPE, ".jpg")
    first = cache.read(2, lambda: draw_image(2))
    expected = cv2.imencode(".jpg", draw_image(2), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    assert np.array_equal(first, cv2.imdecode(expected, cv2.IMREAD_COLOR))
    assert not np.array_equal(first, draw_image(2))  # it loses something, always the same
    again = ImageCache(tmp_path / "images", 4, SHAPE, ".jpg")
    assert np.array_equal(again.read(2, refuse), first)


def test_the_bytes_do_not_depend_on_who_wrote_them_and_when(tmp_path):
    fill(ImageCache(tmp_path / "one", 6, SHAPE, ".jpg"), range(6))
    shared = ImageCache(tmp_path / "two", 6, SHAPE, ".jpg")
    fill(shared, [5, 3])
    if (child := os.fork()) == 0:
        fill(shared, [4, 1, 3])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    found = fill(shared, [0, 2, 4])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    shared.read(1, refuse)
    assert np.array_equal(found[4], shared.read(4, refuse))


@pytest.mark.parametrize("windows", [1, 3])
def test_png_loses_nothing(tmp_path, windows):
    cache = ImageCache(tmp_path / "images", 1, (24, 24, windows), ".png")
    image = draw_image(0)[..., :windows]
    assert np.array_equal(cache.read(0, lambda: image), image)
    assert np.array_equal(cache.read(0, refuse), image)


def test_an_image_that_is_not_whole_is_read_again(tmp_path):
    path = tmp_path / "images"
    cache = ImageCache(path, 2, SHAPE, ".jpg")
    before = fill(cache, [0, 1])
    whole = path.read_bytes()
    for spoiled in (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], whole[:60]):
        path.write_bytes(spoiled)
        cache = ImageCache(path, 2, SHAPE, ".jpg")
        with pytest.raises(AssertionError, match="read again"):
            cache.read(0, refuse)
        assert np.array_equal(fill(cache, [0])[0], before[0])
        assert np.array_equal(cache.read(0, refuse), before[0])


def test_a_full_disk_ends_the_keeping_alone(tmp_path, monkeypatch, caplog):
    cache = ImageCache(tmp_path / "images", 2, SHAPE, ".jpg")
    kept = cache.read(0, lambda: draw_image(0))

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    with caplog.at_level("WARNING", "kit"):
        for _ in range(2):
            assert cache.read(1, lambda: draw_image(1)).shape == SHAPE
    assert caplog.text.count("No space left on device; keeping no more images") == 1
    assert np.array_equal(cache.read(0, refuse), kept)


def test_images_that_no_such_form_holds_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 or 3 windows, not 2"):
        ImageCache(tmp_path / "images", 1, (24, 24, 2), ".jpg")
    cache = ImageCache(tmp_path / "images", 1, SHAPE, ".jpg")
    with pytest.raises(InputError, match="not of float32"):
        cache.read(0, lambda: draw_image(0).astype(np.float32))


@pytest.fixture(scope="module")
def slices(small_data):
    found, _ = index_competition(small_data, workers=1)
    return found[found["split"] == "train"].iloc[5:45]


def test_its_size_is_told_before_and_must_be_free(slices, tmp_path, monkeypatch, capsys):
    config = find_recipe("demo").classifier
    assert open_cache(slices, config, images.read_image) is None  # nobody asked for one
    with keep_images(tmp_path):
        cache = open_cache(slices, config, images.read_image)
    assert f"40 images, about 0.0 GB → {cache.path}" in capsys.readouterr().err
    read = [images.read_image(path, config) for path in slices["path"]]
    # Every image takes whole blocks: 8 bytes before it, and what OpenCV makes of it.
    sizes = [-(-(len(cache.encode(image)) + 8) // 4096) * 4096 for image in read]
    assert cache.estimate_bytes(read, len(read)) == sum(sizes)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with keep_images(tmp_path), pytest.raises(InputError, match=r"0\.0 GB are free"):
        open_cache(slices, config, images.read_image)


def test_other_files_places_or_images_have_another_cache(slices, tmp_path, monkeypatch):
    config = find_recipe("demo").classifier

    def name(slices=slices, config=config):
        with keep_images(tmp_path):
            return open_cache(slices, config, images.read_image).path

    assert name() == name(slices.sample(frac=1, random_state=0))  # whatever fold is held out
    moved = slices.set_axis(slices.index + 1)
    changed = replace(config, subtract_minimum=False)
    assert len({name(), name(slices.iloc[1:]), name(moved), name(config=changed)}) == 4
    assert name(config=replace(config, epochs=9)) == name()
    names = {name()}
    for what, other in (("_FORM", ".png"), ("_QUALITY", [1, 90]), ("__version__", "0.1.0")):
        monkeypatch.setattr(image_cache, what, other)
        names.add(name())
    assert len(names) == 4


def test_training_from_it_is_the_same_where_it_loses_nothing(slices, tmp_path, monkeypatch):
    config = replace(find_recipe("demo").classifier, epochs=2, batch_size=8)
    read, paths = images.read_image, []
    monkeypatch.setattr(images, "read_image", lambda path, c: paths.append(path) or read(path, c))
    monkeypatch.setattr(image_cache, "_FORM", ".png")

    def train(name):
        paths.clear()
        training, held_out = slices.iloc[:32], slices.iloc[32:]
        device = torch.device("cpu")
        train_classifier(training, config, tmp_path / name, device, 0, held_out)
        return load_weights(tmp_path / name / "epoch2.safetensors")[0], len(paths)

    plain, direct = train("plain")
    with keep_images(tmp_path / "cache"):
        kept, reads = train("kept")
        _, later = train("later")
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    # 32 images twice, 8 held out twice; with the cache once, and all 40 to tell its size.
    assert (direct, reads, later) == (64 + 16, 40 + 32 + 16, 40 + 16)
