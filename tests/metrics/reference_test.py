import dataclasses

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.metrics import classifier, protocol, reference


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "user.npz", **arrays)
        return str(tmp_path / "user.npz")

    return write


def test_a_dataset_by_name(digits_config, digits_reference):
    loaded = reference.load("digits", data_dir=digits_config.data_dir)
    assert loaded.sha256 == digits_reference.sha256 and loaded.num_images == 360
    assert loaded.train == digits_config
    np.testing.assert_array_equal(loaded.features, digits_reference.features)


def test_glyphs(glyphs_config, glyphs_test):
    small = reference.from_dataset(glyphs_config, classifier.load("glyphs"))
    result = protocol.evaluate_samples(glyphs_test.images, glyphs_test.labels, small, seed=0)
    assert result["metrics"]["fd_glyphs"] < 1e-3 and result["metrics"]["precision"] == 1
    assert result["metrics"]["class_consistency"] > 0.9
    upside_down = protocol.evaluate_samples(glyphs_test.images[:, ::-1], glyphs_test.labels, small, seed=0)
    assert upside_down["metrics"]["fd_glyphs"] > 1.5 * result["floor"]["fd_glyphs"]


def test_split_rows_and_size(digits_config, digits_test):
    part = reference.read_split(digits_config, "test", rows=[5, 2])
    np.testing.assert_array_equal(part.images, digits_test.images[[5, 2]])
    np.testing.assert_array_equal(part.labels, digits_test.labels[[5, 2]])
    large = reference.read_split(dataclasses.replace(digits_config, image_size=16), "test", rows=[0])
    assert large.images.shape == (1, 16, 16, 1)


def test_images_of_another_size(digits_config, digits):
    with pytest.raises(ConfigError, match=r"shape \(360, 16, 16, 1\).*takes uint8 \(n, 8, 8, 1\)"):
        reference.from_dataset(dataclasses.replace(digits_config, image_size=16), digits)


def test_images_in_a_file(npz, digits_test, digits_reference):
    loaded = reference.load(npz(arr_0=digits_test.images, mu=np.zeros(2048)), features="digits")
    assert loaded.sha256 == digits_reference.sha256 and loaded.name == "user.npz" and loaded.train is None
    np.testing.assert_array_equal(loaded.gaussian.covariance, digits_reference.gaussian.covariance)


@pytest.mark.parametrize("keys", reference.STATISTICS_KEYS)
def test_statistics_in_a_file(npz, digits_reference, keys):
    arrays = dict(zip(keys, digits_reference.gaussian))
    loaded = reference.load(npz(**arrays, kind="gfid", n=360), features="digits")
    np.testing.assert_array_equal(loaded.gaussian.mean, digits_reference.gaussian.mean)
    np.testing.assert_array_equal(loaded.gaussian.covariance, digits_reference.gaussian.covariance)
    assert loaded.features is None and loaded.num_images == 360


def test_statistics_for_reconstructions_are_refused(npz, digits_reference):
    mean, covariance = digits_reference.gaussian
    with pytest.raises(ConfigError, match=r"user\.npz has kind=.rfid.; needed is .gfid."):
        reference.load(npz(mu=mean, sigma=covariance, kind="rfid"), features="digits")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 1), np.uint8)}, "has keys images; it needs arr_0 .images. or one of mu/sigma, "),
        ({"mu": np.zeros(64), "cov": np.eye(64)}, "has keys mu, cov; it needs"),
        ({"mu": np.zeros(2048), "sigma": np.zeros((2048, 2048))}, r"mu/sigma of shapes \(2048,\)"),
        ({"mu": np.zeros(64), "sigma": np.zeros(64)}, r"and \(64,\); the feature network 'digits' has \(64,\)"),
        ({"arr_0": np.zeros((4, 8, 8, 1), np.float32)}, "images of type float32"),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8)}, r"shape \(4, 8, 8\)"),
        ({"arr_0": np.zeros((1, 8, 8, 1), np.uint8)}, "reference has 1 images; the metrics need at least 2"),
    ],
)
def test_wrong_files(npz, arrays, message):
    with pytest.raises(ConfigError, match=message):
        reference.load(npz(**arrays), features="digits")


def test_unreadable_files(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ConfigError, match="is no readable"):
        reference.load(str(tmp_path / "text.npz"), features="digits")
    with pytest.raises(ConfigError, match="does not exist"):
        reference.load(str(tmp_path / "missing.npz"), features="digits")


def test_unknown_names(npz):
    with pytest.raises(ConfigError, match="is a file: say which feature network to use, one of digits"):
        reference.load(npz(arr_0=np.zeros((4, 8, 8, 1), np.uint8)))
    with pytest.raises(ConfigError, match=r"unknown dataset 'digit'; .*did you mean 'digits'"):
        reference.load("digit")
