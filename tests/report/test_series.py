"""The images of a series on a page: their sides, their bytes, their limit."""

import base64

import cv2
import numpy as np
import pandas as pd
from conftest import shared

from kit.classifier import ClassifierConfig
from kit.images import read_image
from kit.report import series

HEAD = "data/dcm_qa_ct/GE"


def test_images_end_where_the_page_would_grow_too_large(small_run, monkeypatch):
    oof = pd.read_parquet(small_run.oof)
    parts = [part for _, part in oof.groupby("series")][:3]
    monkeypatch.setattr(series, "IMAGE_BYTES", 1)
    drawn = series.draw_series(parts, ClassifierConfig(image_size=64, crop=False))
    first, *others = [text for shown in drawn for text in shown["images"]]
    assert first.startswith("data:")
    assert set(others) == {"no image: the page would grow beyond 20 MB"}


def test_fifty_series_of_a_patients_head_fit_on_a_page():
    paths = sorted(shared(HEAD).glob("*.dcm"))
    slices = [read_image(str(path), ClassifierConfig()) for path in paths]
    maps = 6 * 15 * 15 * 4 / 3  # of 480 pixels, in base64
    for number in (50 * 35, 25 * 35, 35):
        side = series.choose_side(number)
        weight = np.mean([len(series.encode_image(image, side)) for image in slices]) + maps
        assert weight * number < series.IMAGE_BYTES


def test_few_series_are_drawn_larger():
    sides = [series.choose_side(slices) for slices in (35, 1200, 1750, 5000)]
    assert sides == [288, 214, 146, 144]
    image = np.zeros((480, 480, 3), np.uint8)
    encoded = base64.b64decode(series.encode_image(image, 214).split(",")[1])
    shape = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE).shape
    assert shape == (214, 3 * 214)
