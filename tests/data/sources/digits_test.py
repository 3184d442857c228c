"""The digits: sizes, values, stratification, and preparation by several processes at once."""

import multiprocessing

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxar.data import datasets
from jaxar.data.sources import _digits_builder


def test_splits_have_their_sizes_and_share_nothing():
    parts = _digits_builder.split_indices(load_digits().target)
    assert (len(parts["train"]), len(parts["test"])) == (1437, 360)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))


def test_split_is_stratified_and_shuffled():
    labels = load_digits().target
    test = _digits_builder.split_indices(labels)["test"]
    counts, ideal = np.bincount(labels[test]), np.bincount(labels) * 360 / 1797
    assert np.all(np.abs(counts - ideal) < 1)
    assert np.any(np.diff(test) < 0)
    # Scans are sorted by writer: a test set of one end would hold few writers.
    assert np.abs(np.mean(test) - 1796 / 2) < 100


def test_images_are_the_scans_over_the_whole_byte_range(digits):
    config = digits()
    scans = {
        np.round(scan * 255 / 16).astype(np.uint8).tobytes(): int(label)
        for scan, label in zip(load_digits().images, load_digits().target)
    }
    values = set()
    for split in ("train", "test"):
        source = datasets.open_split(config, split)
        for index in range(len(source)):
            example = source[index]
            assert example["image"].shape == (8, 8, 1)
            assert scans[example["image"].tobytes()] == example["label"]
            values |= set(example["image"].flat)
    assert len(values) == 17
    assert (min(values), max(values)) == (0, 255)


def test_info(digits):
    info = datasets.info(digits(image_size=16))
    assert info.name == "digits"
    assert info.image.shape == (16, 16, 1)
    assert info.num_classes == 10
    assert info.class_names == tuple("0123456789")
    assert info.splits == {"train": 1437, "test": 360}


def _sizes(folder):
    return datasets.info(datasets.configure({"name": "digits", "data_dir": folder})).splits


def test_several_processes_may_prepare_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_sizes, [str(tmp_path)] * 2, chunksize=1)
    assert found == [{"train": 1437, "test": 360}] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_a_loser_of_the_race_uses_the_winners_data(tmp_path, monkeypatch):
    from jaxar.data.sources import digits

    digits._prepare(tmp_path)
    digits._prepare(tmp_path)  # as if the check had been made before the other process finished
    assert _sizes(str(tmp_path)) == {"train": 1437, "test": 360}


def test_a_failed_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(_digits_builder.Digits, "_generate_examples", fail)
        with pytest.raises(RuntimeError):
            _sizes(str(tmp_path))
    assert _sizes(str(tmp_path)) == {"train": 1437, "test": 360}
