"""Datasets and feature networks that several tests of this folder use."""

import pytest

from jaxar.data import datasets
from jaxar.metrics import classifier, reference


@pytest.fixture(scope="session")
def digits_config(tmp_path_factory):
    config = datasets.configure({"name": "digits", "data_dir": str(tmp_path_factory.mktemp("data"))})
    datasets.info(config)
    return config


@pytest.fixture(scope="session")
def digits():
    return classifier.load("digits")


@pytest.fixture(scope="session")
def digits_train(digits_config):
    return reference.read_split(digits_config, "train")


@pytest.fixture(scope="session")
def digits_test(digits_config):
    return reference.read_split(digits_config, "test")


@pytest.fixture(scope="session")
def digits_reference(digits_config, digits):
    return reference.from_dataset(digits_config, digits)


@pytest.fixture(scope="session")
def glyphs_config():
    return datasets.configure({"name": "glyphs", "test_size": 360})


@pytest.fixture(scope="session")
def glyphs_test(glyphs_config):
    return reference.read_split(glyphs_config, "test")
