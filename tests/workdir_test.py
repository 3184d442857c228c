"""What may change between starts of a run, and what is refused."""

import pytest

from jaxar import workdir
from jaxar.config import ConfigError

CONFIG = {"data": {"name": "folder", "root": "/old", "flip": True}, "train": {"num_steps": 2, "seed": 0}}


@pytest.fixture
def folder(tmp_path):
    workdir.write_json(tmp_path / "config.json", CONFIG)
    return tmp_path


def changed(section, **keys):
    return CONFIG | {section: CONFIG[section] | keys}


def test_a_run_goes_on_longer_and_with_its_data_elsewhere(folder):
    workdir.check_same_run(folder, changed("data", root="/new", data_dir="/cache", num_threads=8))
    workdir.check_same_run(folder, changed("train", num_steps=3))
    workdir.check_same_run(folder, CONFIG | {"mesh": {"fsdp": 2}, "eval": {"every": 5}})


@pytest.mark.parametrize(
    ("section", "key", "value"), [("data", "flip", False), ("data", "image_size", 16), ("train", "seed", 1)]
)
def test_what_changes_the_result_is_refused(folder, section, key, value):
    with pytest.raises(ConfigError, match=f"{section}.{key}={value}, but .* was started with"):
        workdir.check_same_run(folder, changed(section, **{key: value}))
