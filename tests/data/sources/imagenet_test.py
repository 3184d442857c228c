"""ImageNet from its official tar files and from class folders, made up at a small size."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.data.sources import imagenet

SYNSETS = ("n01440764", "n02102040", "n03000684")


def _jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _train_images():
    """Pictures by name; the grey value tells synset and number."""
    return {
        synset: {f"{synset}_{n}.JPEG": _jpeg(60 * k + 10 * n) for n in range(3 - k % 2)}
        for k, synset in enumerate(SYNSETS)
    }


@pytest.fixture
def tars(tmp_path):
    # The outer tar is not sorted.
    train = {f"{synset}.tar": _tar(members) for synset, members in reversed(_train_images().items())}
    (tmp_path / imagenet.TRAIN_TAR).write_bytes(_tar(train))
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": _jpeg(100 + i) for i in (3, 1, 2, 4)}
    (tmp_path / imagenet.VAL_TAR).write_bytes(_tar(val))
    (tmp_path / imagenet.VAL_LABELS).write_text("\n".join([SYNSETS[2], SYNSETS[0], SYNSETS[1], SYNSETS[2]]) + "\n")
    return tmp_path


def _config(root, **options):
    return datasets.configure({"name": "imagenet", "root": str(root), "data_dir": str(root / "cache"), **options})


def _contents(config, split):
    source = datasets.open_split(config, split)
    return [(round(float(source[i]["image"].mean())), source[i]["label"]) for i in range(len(source))]


TRAIN = [(0, 0), (10, 0), (20, 0), (60, 1), (70, 1), (120, 2), (130, 2), (140, 2)]


def test_training_tar_is_read_in_place_and_in_order(tars):
    assert _contents(_config(tars), "train") == TRAIN
    assert sorted(p.name for p in tars.iterdir()) == sorted(
        ["cache", imagenet.TRAIN_TAR, imagenet.VAL_TAR, imagenet.VAL_LABELS]
    )


def test_validation_labels_follow_the_names(tars):
    assert _contents(_config(tars), "test") == [(101, 2), (102, 0), (103, 1), (104, 2)]


def test_info(tars):
    info = datasets.info(_config(tars))
    assert info.class_names == SYNSETS
    assert info.splits == {"train": 8, "test": 4}
    assert info.image.shape == (256, 256, 3)
    (tars / "LOC_synset_mapping.txt").write_text("".join(f"{s} word {s[-1]}, other\n" for s in SYNSETS))
    assert datasets.info(_config(tars)).class_names[0] == "word 4, other"


def test_class_folders_hold_the_same_examples(tmp_path):
    for synset, members in _train_images().items():
        for split in ("train", "val"):
            (tmp_path / split / synset).mkdir(parents=True)
            for name, data in members.items():
                (tmp_path / split / synset / name).write_bytes(data)
    assert _contents(_config(tmp_path), "train") == TRAIN
    assert _contents(_config(tmp_path), "test") == TRAIN


def test_the_listing_is_kept_until_the_tar_changes(tars, monkeypatch):
    config, directory = _config(tars), tars / "cache"
    calls = []
    members = imagenet._train_members
    monkeypatch.setattr(imagenet, "_train_members", lambda tar: calls.append(tar) or members(tar))
    for _ in range(2):
        imagenet._split.cache_clear()  # as in a new process
        assert len(imagenet._split(tars, "train", directory)[1]) == 8
    assert len(calls) == 1
    synset = SYNSETS[0]
    (tars / imagenet.TRAIN_TAR).write_bytes(_tar({f"{synset}.tar": _tar({f"{synset}_0.JPEG": _jpeg(9)})}))
    imagenet._split.cache_clear()
    assert _contents(config, "train") == [(9, 0)]


@pytest.mark.parametrize("name", ["../n01440764.tar", "/n01440764.tar", "n01440764.txt", "dir/n01440764.tar"])
def test_odd_members_of_the_outer_tar_are_refused(tmp_path, name):
    (tmp_path / imagenet.TRAIN_TAR).write_bytes(_tar({name: _tar({})}))
    with pytest.raises(ConfigError, match=f"holds '{name}'"):
        datasets.open_split(_config(tmp_path), "train")


def test_odd_members_of_an_inner_tar_are_refused(tmp_path):
    inner = _tar({"../../escape.JPEG": _jpeg(1)})
    (tmp_path / imagenet.TRAIN_TAR).write_bytes(_tar({"n01440764.tar": inner}))
    with pytest.raises(ConfigError, match=r"escape\.JPEG"):
        datasets.open_split(_config(tmp_path), "train")


def test_links_are_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / imagenet.VAL_TAR).write_bytes(buffer.getvalue())
    (tmp_path / imagenet.VAL_LABELS).write_text(SYNSETS[0])
    with pytest.raises(ConfigError, match="not a file named"):
        datasets.open_split(_config(tmp_path), "test")


def test_mistakes_name_what_is_missing(tars, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ConfigError, match=r"neither train/ nor ILSVRC2012_img_train.tar"):
        datasets.info(_config(empty))
    (tars / imagenet.VAL_LABELS).write_text(SYNSETS[0])
    with pytest.raises(ConfigError, match="has 1 lines for 4 images"):
        datasets.open_split(_config(tars), "test")
    (tars / imagenet.VAL_LABELS).write_text("\n".join(["n00000001"] * 4))
    with pytest.raises(ConfigError, match="other classes"):
        datasets.open_split(_config(tars), "test")
    (tars / imagenet.VAL_LABELS).unlink()
    imagenet._split.cache_clear()
    with pytest.raises(ConfigError, match="lists the synset of each image"):
        datasets.open_split(_config(tars), "test")
