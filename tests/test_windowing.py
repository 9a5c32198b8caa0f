import tracemalloc

import numpy as np
import pytest
from conftest import golden, shared

from kit.windowing import crop_to_head, resize_image, window_image


@pytest.mark.parametrize(
    "case", ["signed16", "unsigned12", "padded", "no_air", "zoomed_bone", "constant", "slope"]
)
@pytest.mark.parametrize("integers", [True, False])
def test_windows_equal_the_published_values(case, integers):
    values = golden("windowing")
    hounsfield = values[f"{case}.pixels"] * values[f"{case}.slope"] + values[f"{case}.intercept"]
    if integers and case != "slope":
        hounsfield = hounsfield.astype(np.int16)
    np.testing.assert_array_equal(window_image(hounsfield), values[f"{case}.expected"])


def test_windows_of_a_real_head_equal_the_published_values():
    values = np.load(shared("golden/windowing_real.npz"))
    hounsfield = values["real_head.pixels"].astype(np.int16)
    np.testing.assert_array_equal(window_image(hounsfield), values["real_head.expected"])


def test_windows_by_hand():
    # brain 0..80, subdural -20..180, soft tissue -150..230; -2000 makes every minimum zero
    image = window_image(np.array([[-2000, 40, 230, 0]], dtype=np.int16))
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, 1].tolist() == [127, 76, 127]  # 0.5, 60/200, 190/380 times 255, truncated
    assert image[0, 2].tolist() == [255, 255, 255]
    assert image[0, 3].tolist() == [0, 25, 100]  # 0, 20/200, 150/380


@pytest.mark.parametrize("extreme", [-32768, 32767])
def test_extreme_values_fall_on_the_windows_ends(extreme):
    image = window_image(np.array([[extreme, -200]], dtype=np.int16))
    assert image[0, 0].tolist() == [0 if extreme < 0 else 255] * 3


@pytest.mark.parametrize("rows", [1, 64, 200])
def test_floats_and_integers_of_the_same_values_give_the_same_image(rows):
    hounsfield = np.random.default_rng(rows).integers(-300, 400, (rows, 90)).astype(np.int16)
    np.testing.assert_array_equal(window_image(hounsfield.astype(np.float32)),
                                  window_image(hounsfield))  # fmt: skip


def test_a_large_slice_of_floats_takes_little_memory():
    hounsfield = np.zeros((2048, 2048), np.float32)
    tracemalloc.start()
    try:
        image = window_image(hounsfield)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * image.nbytes


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        window_image(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize("case", ["tall", "wide", "touching", "small"])
def test_crop_and_resize_equal_the_published_values(case):
    values = golden("crop")
    cropped = crop_to_head(values[f"{case}.image"])
    np.testing.assert_array_equal(cropped, values[f"{case}.expected"])
    np.testing.assert_array_equal(resize_image(cropped, 96), values[f"{case}.resized_96"])


def test_an_all_black_slice_stays_uncropped():
    assert crop_to_head(np.zeros((7, 9, 3), np.uint8)).shape == (9, 9, 3)


def test_a_single_bright_pixel_gives_a_square_of_three():
    image = np.zeros((8, 8, 3), np.uint8)
    image[5, 6, 1] = 9
    cropped = crop_to_head(image)
    assert cropped.shape == (3, 3, 3)
    assert cropped[0, 0, 1] == 9
    assert cropped.sum() == 9
