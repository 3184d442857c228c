"""Data prepared once for the tests of this folder."""

import pytest

from jaxar.data import datasets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.info(datasets.configure({"name": "digits", "data_dir": str(folder)}))
    return str(folder)


@pytest.fixture(scope="session")
def digits(data_dir):
    """Configurations of the digits: `digits(shift=1)`."""
    return lambda **options: datasets.configure({"name": "digits", "data_dir": data_dir, **options})
