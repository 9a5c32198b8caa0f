"""The series of a page: their images, their limit, what a slice without one says."""

import numpy as np
import pandas as pd
import pytest

from kit.classifier import ClassifierConfig
from kit.report import series
from kit.report.series import choose_series, describe_series, present_series

CONFIG = ClassifierConfig(image_size=64, crop=False)


def test_a_page_draws_as_many_series_as_it_takes_and_never_none(small_run, monkeypatch):
    oof = pd.read_parquet(small_run.oof)
    every, rates = choose_series(oof, True, CONFIG)
    assert len(every) == oof["series"].nunique() == len(rates)
    _, images = present_series(oof, every, CONFIG)
    half = sum(map(len, images)) / 2
    monkeypatch.setattr(series, "IMAGE_CHARACTERS", half)
    chosen, _ = choose_series(oof, True, CONFIG)
    assert len(every) * 0.4 < len(chosen) < len(every) * 0.6
    monkeypatch.setattr(series, "IMAGE_CHARACTERS", 1)
    assert len(choose_series(oof, False, CONFIG)[0]) == 1


def test_a_series_says_where_its_slices_lie_and_how_they_are_turned(small_run):
    oof = pd.read_parquet(small_run.oof)
    part = oof[oof["series"] == oof["series"].iloc[0]].reset_index(drop=True)
    part["InstanceNumber"] = [str(len(part) - n) for n in range(len(part))]
    part.loc[1, "InstanceNumber"] = None
    part["ImageOrientationPatient"] = "-1\\0\\0\\0\\1\\0"
    part.loc[2, "ImageOrientationPatient"] = "1\\0\\0"
    found = describe_series(part)
    assert found["letters"] == ["L,R,A,P", "L,R,A,P", "", *["L,R,A,P"] * (len(part) - 3)]
    assert found["instances"][:3] == [str(len(part)), None, str(len(part) - 2)]
    assert found["uid"] == part["SeriesInstanceUID"].iloc[0]
    assert found["axis"] == "mm above the lowest slice"
    assert describe_series(part.assign(ImagePositionPatient=None))["axis"] == "instance number"


def test_each_slice_has_a_line_and_one_without_an_image_has_its_reason(small_run):
    oof = pd.read_parquet(small_run.oof)
    part = oof[oof["series"] == oof["series"].iloc[0]].reset_index(drop=True)
    part["PixelSpacing"] = "3.2\\3.2"
    part.loc[1, ["path", "PixelSpacing"]] = ["/nowhere/slice.dcm", None]
    part.loc[2, "PixelSpacing"] = None
    (found,), (text,) = present_series(part, [part["series"].iloc[0]], CONFIG)
    lines = text.split("\n")
    assert [bool(line) for line in lines] == [True, False, *[True] * (len(part) - 2)]
    assert found["reasons"] == {1: "No such file or directory"}
    assert found["mm"][:4] == [3.2, None, None, 3.2]
    assert found["maps"] is None


@pytest.mark.parametrize("crop", [True, False])
def test_a_map_lies_where_the_model_saw_the_slice(small_run, crop):
    oof = pd.read_parquet(small_run.oof)
    part = oof[oof["series"] == oof["series"].iloc[0]]
    config = ClassifierConfig(image_size=64, crop=crop)
    (found,), _ = present_series(
        part, [part["series"].iloc[0]], config, lambda images: np.zeros((len(images), 6, 8, 8))
    )
    assert found["maps"]["shape"] == [8, 8]
    left, top, width, height = found["maps"]["views"][len(part) // 2]
    if crop:
        assert 0 < left < 0.4
        assert 0 < top < 0.4
        assert 0.4 < width == height < 1
    else:
        assert [left, top, width, height] == [0, 0, 1, 1]
