"""Crops, flips and shifts against closed forms."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import augment
from jaxar.data.base import DataConfig


def _ramp(height, width, channels=3):
    """Value = column; second half of the range = row."""
    image = np.zeros((height, width, channels), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., -1] = np.arange(height)[:, None] if channels > 1 else image[..., 0]
    return image


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_center_crop_cuts_the_middle_of_the_longer_side():
    image = _ramp(20, 51)
    assert np.array_equal(augment.center_crop(image, 20), image[:, 15:35])
    assert np.array_equal(augment.center_crop(image.swapaxes(0, 1), 20), image.swapaxes(0, 1)[15:35])


def test_center_crop_leaves_fitting_images_alone():
    image = _rng().integers(0, 256, (8, 8, 1)).astype(np.uint8)
    assert np.array_equal(augment.center_crop(image, 8), image)


def test_large_images_are_averaged_before_they_are_interpolated():
    # Stripes of one pixel: averaging gives their mean, interpolation alone would keep or alias them.
    image = np.zeros((64, 64, 1), np.uint8)
    image[:, ::2] = 200
    assert np.all(augment.center_crop(image, 32) == 100)
    assert np.all(np.abs(augment.center_crop(image, 12).astype(int) - 100) <= 1)


def test_center_crop_enlarges():
    image = np.full((8, 8, 1), 77, np.uint8)
    enlarged = augment.center_crop(image, 24)
    assert enlarged.shape == (24, 24, 1) and np.all(enlarged == 77)


def test_random_crop_cuts_anywhere_and_keeps_its_share():
    image = _ramp(100, 150)
    sides, corners = [], set()
    for seed in range(60):
        crop = augment.random_crop(image, 40, _rng(seed), (0.5, 1.0))
        assert crop.shape == (40, 40, 3)
        sides.append(float(crop[20, -1, 0]) - float(crop[20, 0, 0]))  # width of the crop in pixels of the image
        corners.add((int(crop[0, 0, 0]) // 20, int(crop[0, 0, 2]) // 20))
    assert 0.5 * 100 * 39 / 40 - 3 <= min(sides) < 56
    assert 92 < max(sides) <= 100
    assert len(corners) > 10


def test_random_crop_of_the_whole_is_the_whole():
    image = _ramp(32, 32)
    assert np.array_equal(augment.random_crop(image, 32, _rng(), (1.0, 1.0)), image)


def test_resized_crop_keeps_its_share_of_the_area():
    image = _ramp(200, 200)
    shares = []
    for seed in range(60):
        crop = augment.resized_crop(image, 50, _rng(seed), (0.25, 0.36)).astype(float)
        width, height = (crop[25, -1, 0] - crop[25, 0, 0]) * 50 / 49, (crop[-1, 25, 2] - crop[0, 25, 2]) * 50 / 49
        shares.append(width * height / 200**2)
        assert 0.7 < width / height < 1.43
    assert 0.23 < min(shares) < 0.27
    assert 0.34 < max(shares) < 0.38


def test_resized_crop_fits_into_narrow_images():
    crop = augment.resized_crop(_ramp(10, 200), 16, _rng(), (1.0, 1.0))
    assert crop.shape == (16, 16, 3)


def test_flip():
    assert np.array_equal(augment.flip(_ramp(4, 6))[:, :, 0], np.tile(np.arange(5, -1, -1), (4, 1)))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-2, 0), (0, 2), (0, -1), (2, -2)])
def test_shift(down, right):
    image = _ramp(5, 5) + 1
    expected = np.zeros_like(image)
    for row in range(5):
        for column in range(5):
            if 0 <= row - down < 5 and 0 <= column - right < 5:
                expected[row, column] = image[row - down, column - right]
    assert np.array_equal(augment.shift(image, down, right), expected)


def test_ten_crop_takes_centre_corners_and_mirror_images():
    image = _ramp(22, 22)
    crops = augment.variants(image, 20, "ten_crop")
    assert crops.shape == (10, 20, 20, 3)
    corners = [(int(crop[0, 0, 2]), int(crop[0, 0, 0])) for crop in crops[:5]]
    assert corners == [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)]
    assert np.array_equal(crops[5:], crops[:5, :, ::-1])


def test_variants_start_with_the_centre_crop():
    image = _ramp(22, 30)
    assert np.array_equal(augment.variants(image, 20, "image")[0], augment.center_crop(image, 20))
    both = augment.variants(image, 20, "flip")
    assert len(both) == 2 and np.array_equal(both[1], both[0][:, ::-1])


def _config(**options):
    return DataConfig(name="made", **{"image_size": 8, **options})


def test_the_map_is_a_pure_function_of_example_and_generator():
    config = _config(crop="random", flip=True, shift=2)
    example = {"image": _ramp(16, 20), "label": 3}
    before = example["image"].copy()
    results = [augment.Augment(config).random_map(example, _rng(4)) for _ in range(2)]
    assert np.array_equal(results[0]["image"], results[1]["image"])
    assert np.array_equal(example["image"], before)
    other = augment.Augment(config).random_map(example, _rng(5))
    assert not np.array_equal(other["image"], results[0]["image"])


def test_half_of_the_images_are_flipped_and_shifts_stay_in_range():
    image = np.zeros((8, 8, 1), np.uint8)
    image[3, 2] = 255
    found = [
        np.argwhere(augment.Augment(_config(flip=True, shift=1)).random_map({"image": image}, _rng(s))["image"])[0][:2]
        for s in range(300)
    ]
    rows, columns = np.array(found).T
    assert sorted(set(rows)) == [2, 3, 4]
    assert sorted(set(columns)) == [1, 2, 3, 4, 5, 6]
    assert 120 < np.sum(columns > 3) < 180


def test_evaluation_takes_the_centre():
    example = augment.Center(_config(crop="random", flip=True, shift=2)).map({"image": _ramp(8, 12), "label": 1})
    assert np.array_equal(example["image"], _ramp(8, 12)[:, 2:10])


def test_a_cached_example_gives_any_variant_in_training_and_the_first_in_evaluation():
    example = {"ids": np.array([[1, 2], [3, 4]], np.uint16), "label": 0}
    drawn = {tuple(augment.Augment(_config()).random_map(example, _rng(s))["ids"]) for s in range(20)}
    assert drawn == {(1, 2), (3, 4)}
    kept = augment.Center(_config()).map(example)
    assert kept["ids"].tolist() == [1, 2] and kept["ids"].dtype == np.int32


def test_latents_are_drawn_from_the_posterior_in_training():
    mean, std = np.full((1, 4000, 1), 3, np.float16), np.full((1, 4000, 1), 0.5, np.float16)
    example = {"mean": mean, "std": std, "label": 0}
    drawn = augment.Augment(_config()).random_map(example, _rng())
    assert set(drawn) == {"latents", "label"} and drawn["latents"].dtype == np.float32
    assert np.mean(drawn["latents"]) == pytest.approx(3, abs=0.05)
    assert np.std(drawn["latents"]) == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(augment.Center(_config()).map(example)["latents"], mean[0].astype(np.float32))


def test_images_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="uint8"):
        augment.center_crop(np.zeros((9, 9, 3), np.float32), 8)
