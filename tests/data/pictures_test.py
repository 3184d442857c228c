"""Grids: every pixel where it belongs."""

import numpy as np
import pytest

from jaxar.data import pictures


def test_to_uint8_hits_the_ends_and_clips():
    floats = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)
    assert pictures.to_uint8(floats).tolist() == [0, 0, 128, 255, 255]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pictures.to_uint8((2 * every.astype(np.float32) - 255) / 255), every)
    assert pictures.to_uint8(every) is every


def test_tiles_lie_row_by_row_and_pixels_stay_sharp():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((1, 2, 2, 3), 40, np.uint8)
    images[:, :, 1] = 250
    page = np.asarray(pictures.grid(images, columns=3, scale=5))
    assert page.shape == (6 + 2 * 16, 6 + 3 * 16, 3)
    for index in range(6):
        row, column = divmod(index, 3)
        tile = page[6 + row * 16 : 16 + row * 16, 6 + column * 16 : 16 + column * 16]
        assert np.all(tile[:, :5] == 40 * index) and np.all(tile[:, 5:] == 250)


def test_small_images_grow_and_grey_ones_work():
    page = pictures.grid(np.zeros((1, 8, 8, 1), np.uint8))
    assert page.size == (96 + 12, 96 + 12)
    assert pictures.grid(np.zeros((1, 256, 256, 3), np.uint8)).size == (268, 268)


def test_titles_add_ink_below_their_tiles_and_rows_at_the_left():
    images = np.full((2, 96, 96, 3), 255, np.uint8)
    plain = np.asarray(pictures.grid(images))
    assert np.all(plain == 255)
    titled = np.asarray(pictures.grid(images, titles=["", "an exceedingly long class name"]))
    dark = np.argwhere(titled[:, :, 0] < 128)
    assert dark[:, 0].min() >= 6 + 96
    assert dark[:, 1].min() >= 6 + 96 + 6 and dark[:, 1].max() < 6 + 2 * 102
    rows = np.asarray(pictures.grid(images, row_titles=["step 100"]))
    assert rows.shape[1] > plain.shape[1]
    assert np.argwhere(rows[:, :, 0] < 128)[:, 1].max() < rows.shape[1] - plain.shape[1] + 6


def test_lists_of_another_length_are_refused():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="2 titles for 3 images"):
        pictures.grid(images, titles=["a", "b"])
    with pytest.raises(ValueError, match="1 row_titles for 3 rows"):
        pictures.grid(images, columns=1, row_titles=["a"])
    with pytest.raises(ValueError, match="n h w c"):
        pictures.grid(images[0])
