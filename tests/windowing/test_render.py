import runpy
import tracemalloc

import numpy as np
import pytest
from conftest import golden, shared

from kit.windowing import (
    InputConfig,
    crop_to_head,
    render_image,
    resize_image,
    window_image,
)
from kit.windowing.render import find_view


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


def test_other_scales_by_hand():
    hounsfield = np.array([[-2000, -10, 40, 100, 9000]], np.int16)
    plain = {"crop": False, "subtract_minimum": False, "windows": ((40, 80), (80, 201))}
    plain |= {"mean": (0, 0), "std": (1, 1)}
    for values in (hounsfield, hounsfield.astype(np.float32)):
        unit = window_image(values, InputConfig(**plain, scale="unit"))
        assert unit.dtype == np.float32
        # brain 0..80; the other −20..180, as the published code halves an odd width
        np.testing.assert_allclose(unit[0, :, 0], [0, 0, 0.5, 1, 1], atol=1e-7)
        np.testing.assert_allclose(unit[0, :, 1], [0, 0.05, 0.3, 0.6, 1], atol=1e-7)
        units = window_image(values, InputConfig(**plain, scale="hounsfield"))
        assert units.dtype == np.float32
        assert units[0, :, 1].tolist() == [-20, -10, 40, 100, 180]
        eight = window_image(values, InputConfig(**plain))
        assert eight.dtype == np.uint8
        assert eight[0, :, 1].tolist() == [0, 12, 76, 153, 255]  # truncated


@pytest.mark.parametrize("scale", ["uint8", "unit"])
@pytest.mark.parametrize("subtract", [True, False])
def test_the_minimum_is_subtracted_where_the_model_wants_it(scale, subtract):
    hounsfield = np.array([[20, 60]], np.int16)  # of the brain window a quarter and three quarters
    config = InputConfig(scale=scale, subtract_minimum=subtract, crop=False)
    found = window_image(hounsfield, config)[0, :, 0] / (255 if scale == "uint8" else 1)
    np.testing.assert_allclose(found, [0, 0.5] if subtract else [0.25, 0.75], atol=1 / 255)


def cut(size, **options):
    plain = {"geometry": "cut", "crop": False, "subtract_minimum": False, "scale": "unit"}
    return InputConfig(**plain, image_size=size, **options)


def test_a_frame_is_cut_in_the_middle_and_padded_after_windowing():
    hounsfield = np.arange(9 * 7).reshape(9, 7).astype(np.int16) + 10
    image = render_image(hounsfield, cut(8))
    assert image.shape == (8, 8, 3)
    # Nine rows: the first 8 of them, as (9 − 8) // 2 is 0. Seven columns: one of zeros behind.
    np.testing.assert_allclose(image[:, :7, 0], hounsfield[:8] / 80, atol=1e-6)
    assert (image[:, 7] == 0).all()  # also where the window's value of 0 HU is 150 / 380
    small = render_image(np.full((1, 2), 40, np.int16), cut(8))
    assert np.argwhere(small[..., 0] > 0).tolist() == [[3, 3], [3, 4]]


def test_a_frame_above_the_limit_is_resized_by_area():
    hounsfield = np.tile(np.array([[0, 80], [40, 40]], np.int16), (8, 16))  # 16 rows, 32 columns
    kept = render_image(hounsfield, cut(8, largest_cut=32))
    np.testing.assert_allclose(kept[:2, :2, 0], [[0, 1], [0.5, 0.5]])
    resized = render_image(hounsfield, cut(8, largest_cut=31))
    np.testing.assert_allclose(resized[..., 0], 0.5)  # the mean of each two rows and four columns


@pytest.mark.parametrize("shape", [(512, 512), (400, 500), (600, 512), (700, 700)])
def test_released_windows_equal_their_values(shape):
    released, values = shared("golden/released.py"), np.load(shared("golden/ianpan.npz"))
    blocks = runpy.run_path(str(released))["blocks"]
    config = cut(512, windows=((40, 80), (80, 200), (600, 2800)))
    image = render_image(blocks(shape, 1 + shape[0]), config)
    expected = values[f"window_{shape[0]}x{shape[1]}"]
    found = image[::37, ::41].transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "config", "expected"),
    [
        ((100, 80), InputConfig(image_size=64, crop=False), (0, 0, 100, 80)),
        # The head fills rows 20 to 59 and columns 30 to 44: the square goes on to the right.
        ((100, 80), InputConfig(image_size=64), (20, 30, 40, 40)),
        ((100, 80), InputConfig(image_size=64, geometry="cut", crop=False), (18, 8, 64, 64)),
        ((100, 50), InputConfig(image_size=64, geometry="cut", crop=False), (18, -7, 64, 64)),
        ((700, 80), InputConfig(image_size=64, geometry="cut", crop=False), (0, 0, 700, 80)),
    ],
)
def test_the_view_of_a_model_is_where_its_image_shows_the_slice(shape, config, expected):
    hounsfield = np.full(shape, -1000, np.int16)
    hounsfield[20:60, 30:45] = 40
    top, left, rows, columns = expected
    assert find_view(hounsfield, config) == expected
    # A pixel in the view is where it should be in the image, to a pixel of the image.
    hounsfield[:] = -1000 if config.crop else 0
    hounsfield[46:58, 33:43] = 80
    if config.crop:
        hounsfield[20:60, 30] = hounsfield[20, 30:45] = hounsfield[59, 30:45] = 41
    weights = np.maximum(
        render_image(hounsfield, config)[..., 0].astype(int) - 135 * config.crop, 0
    )
    y, x = (np.average(places, weights=weights) for places in np.indices(weights.shape))
    assert y == pytest.approx((51.5 - top) / rows * 64, abs=1)
    assert x == pytest.approx((37.5 - left) / columns * 64, abs=1)
