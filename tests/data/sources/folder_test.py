"""Folders of class folders."""

import numpy as np
import pytest
from PIL import Image

from jaxar.config import ConfigError
from jaxar.data import datasets


def _fill(folder, names, value):
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(folder / name)


def _config(root, **options):
    return datasets.configure({"name": "folder", "root": str(root), "image_size": 4, **options})


@pytest.fixture
def whole(tmp_path):
    _fill(tmp_path / "dog", [f"{i}.png" for i in range(20)], 10)
    _fill(tmp_path / "cat", [f"{i}.png" for i in range(10)], 200)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_classes_are_folders_and_a_share_of_each_is_held_out(whole):
    info = datasets.info(_config(whole, test_fraction=0.2))
    assert info.class_names == ("cat", "dog")
    assert info.splits == {"train": 24, "test": 6}
    test = datasets.open_split(_config(whole, test_fraction=0.2), "test")
    assert [test[i]["label"] for i in range(6)] == [0, 0, 1, 1, 1, 1]
    for index in range(6):
        assert np.all(test[index]["image"] == (200 if test[index]["label"] == 0 else 10))


def test_hold_out_is_disjoint_and_depends_on_names_alone(whole, tmp_path_factory):
    splits = {s: datasets.open_split(_config(whole), s) for s in ("train", "test")}
    names = {s: {(p.parent.name, p.name) for p, _ in source.files} for s, source in splits.items()}
    assert not names["train"] & names["test"]
    assert len(names["train"] | names["test"]) == 30
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    whole.rename(copy)
    moved = datasets.open_split(_config(copy), "test")
    assert {(p.parent.name, p.name) for p, _ in moved.files} == names["test"]


def test_given_splits_are_kept(tmp_path):
    _fill(tmp_path / "train" / "a", ["1.png", "2.png", "3.png"], 1)
    _fill(tmp_path / "train" / "b", ["1.png"], 2)
    _fill(tmp_path / "val" / "b", ["9.png"], 3)
    assert datasets.info(_config(tmp_path)).splits == {"train": 4, "test": 1}
    assert datasets.open_split(_config(tmp_path), "test")[0]["label"] == 1


def test_a_class_may_be_called_train(tmp_path):
    _fill(tmp_path / "train", ["1.png", "2.png"], 1)
    _fill(tmp_path / "ship", ["1.png", "2.png"], 2)
    assert datasets.info(_config(tmp_path)).class_names == ("ship", "train")


def test_grey_and_colour(whole):
    assert datasets.open_split(_config(whole, channels=1), "train")[0]["image"].shape == (5, 7, 1)
    assert datasets.open_split(_config(whole), "train")[0]["image"].shape == (5, 7, 3)


def test_mistakes_name_the_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root='/no/such' is not a folder"):
        datasets.info(_config("/no/such"))
    with pytest.raises(ConfigError, match="has no class folders"):
        datasets.info(_config(tmp_path))
    _fill(tmp_path / "train" / "a", ["1.png"], 1)
    _fill(tmp_path / "test" / "b", ["1.png"], 1)
    with pytest.raises(ConfigError, match="test images of class 'b'"):
        datasets.info(_config(tmp_path))


def test_a_damaged_picture_is_named(whole):
    source = datasets.open_split(_config(whole), "train")
    path = source.files[0][0]
    path.write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=f"{path.name} is not a readable image"):
        source[0]
