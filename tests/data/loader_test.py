"""Batches are functions of seed and step, whoever prepares them."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxar import partition
from jaxar.config import ConfigError
from jaxar.data import datasets, loader


@pytest.fixture
def small(monkeypatch):
    """Ten examples whose picture is their index; returns their configuration."""

    class Source:
        def __init__(self, split):
            self.split = split

        def __len__(self):
            return 10

        def __getitem__(self, index):
            assert 0 <= index < 10
            return {"image": np.full((4, 4, 1), 10 * index, np.uint8), "label": int(index), "caption": f"word {index}"}

    monkeypatch.setattr(loader, "open_split", lambda config, split: Source(split))
    return lambda **options: datasets.configure({"name": "digits", "image_size": 4, **options})


def _labels(batches, steps):
    return np.concatenate([batches[step]["label"] for step in steps])


def test_every_epoch_covers_every_example_once_in_a_new_order(small):
    batches = loader.training_set(small(), batch_size=4, seed=0)
    order = _labels(batches, range(15)).reshape(6, 10)  # batches run over the ends of epochs
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in order}) == 6


def test_the_seed_alone_sets_the_order(small):
    first, again, other = (loader.training_set(small(), batch_size=10, seed=s) for s in (3, 3, 4))
    assert np.array_equal(_labels(first, range(3)), _labels(again, range(3)))
    assert not np.array_equal(_labels(first, range(1)), _labels(other, range(1)))
    # No seed replays another one an epoch later.
    assert not np.array_equal(_labels(first, [1]), _labels(other, [0]))


def test_order_is_the_raw_philox_stream():
    # Resuming needs the same order from every numpy: only the raw stream is guaranteed.
    assert loader._order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_a_step_holds_the_same_batch_whenever_it_is_asked_for(digits):
    config = digits(shift=1, flip=True)
    batches = loader.training_set(config, batch_size=16, seed=0)
    expected = [batches[step] for step in range(6)]
    for step in (5, 0, 3):
        again = loader.training_set(config, batch_size=16, seed=0)[step]
        assert np.array_equal(again["image"], expected[step]["image"])
        assert np.array_equal(again["label"], expected[step]["label"])


def test_an_example_is_augmented_anew_in_every_epoch(digits):
    config = digits(shift=1)
    batches = loader.training_set(config, batch_size=1437, seed=0)
    found = []
    for epoch in range(2):
        batch, order = batches[epoch], loader._order(0, epoch, 1437)
        found.append(batch["image"][np.argsort(order)])
    same = np.mean([np.array_equal(a, b) for a, b in zip(*found)])
    assert 0.05 < same < 0.2  # nine shifts


def test_batches_on_devices_continue_from_any_step(digits):
    config = digits(shift=1)
    local = loader.training_set(config, batch_size=8, seed=0)
    start = list(itertools.islice(loader.train_batches(config, batch_size=8, seed=0), 5))
    resumed = list(itertools.islice(loader.train_batches(config, batch_size=8, seed=0, start_step=2), 3))
    for step, batch in [*enumerate(start), *enumerate(resumed, start=2)]:
        assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
        expected = (2 * local[step]["image"].astype(np.float32) - 255) / 255
        assert np.allclose(batch["image"], expected, atol=1e-7)  # XLA multiplies by 1 / 255
        assert np.array_equal(batch["label"], local[step]["label"])


def test_bytes_become_floats_over_the_whole_range():
    floats = loader.to_float(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)).ravel()
    assert (floats[0], floats[-1]) == (-1, 1)
    assert np.allclose(np.diff(floats), 2 / 255)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_makes_the_same_batch(digits, processes):
    config = digits(shift=1, flip=True)
    whole = loader.training_set(config, batch_size=16, seed=0)[90]  # runs over the end of an epoch
    blocks = np.arange(16).reshape(processes, -1)
    parts = [loader.training_set(config, batch_size=16, seed=0, rows=rows)[90] for rows in blocks]
    for name in ("image", "label"):
        assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_rows_may_lie_apart(digits):
    rows = [0, 1, 6, 7]
    part = loader.training_set(digits(shift=1), batch_size=8, seed=0, rows=rows)[3]
    whole = loader.training_set(digits(shift=1), batch_size=8, seed=0)[3]
    assert np.array_equal(part["image"], whole["image"][rows])


@pytest.mark.parametrize("batch_size", [3, 5, 10, 16])
def test_evaluation_sees_every_example_once_in_order(small, batch_size):
    batches = list(loader.eval_batches(small(), "test", batch_size=batch_size))
    assert all(batch["label"].shape == batch["valid"].shape == (batch_size,) for batch in batches)
    labels, valid = (np.concatenate([batch[name] for batch in batches]) for name in ("label", "valid"))
    assert labels[valid].tolist() == list(range(10))
    assert not valid[10:].any()
    images = np.concatenate([batch["image"] for batch in batches])[valid]
    assert np.allclose(images[:, 0, 0, 0], np.arange(10) * 20 / 255 - 1)


def test_evaluation_is_not_augmented(digits):
    batch = next(loader.eval_batches(digits(shift=3, flip=True), "test", batch_size=8))
    source = datasets.open_split(digits(), "test")
    for row in range(8):
        assert np.allclose(batch["image"][row], source[row]["image"] / 127.5 - 1, atol=1e-6)


def test_text_is_in_the_batch(small):
    batch = next(loader.train_batches(small(text={"length": 4, "width": 8}), batch_size=2, seed=0))
    assert batch["text"].shape == (2, 4, 8) and batch["text"].dtype == np.float32
    assert np.array_equal(batch["text_mask"], [[False, False, True, True]] * 2)
    assert set(next(loader.train_batches(small(), batch_size=2, seed=0))) == {"image", "label"}


def test_an_error_in_a_thread_reaches_the_caller(digits, monkeypatch):
    source = datasets.open_split(digits(), "train")
    monkeypatch.setattr(type(source), "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(loader.train_batches(digits(), batch_size=2, seed=0))


@pytest.mark.sharded
def test_batches_are_sharded_over_data_and_fsdp(digits):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight (simulated) devices")
    mesh = partition.make_mesh(partition.MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    batch = next(loader.train_batches(digits(shift=1), batch_size=16, seed=0, mesh=mesh))
    assert batch["image"].sharding.shard_shape((16, 8, 8, 1)) == (4, 8, 8, 1)
    assert np.array_equal(batch["label"], loader.training_set(digits(), batch_size=16, seed=0)[0]["label"])
    with pytest.raises(ConfigError, match=r"batch_size=6 is not divisible by mesh data\*fsdp=4"):
        loader.train_batches(digits(), batch_size=6, seed=0, mesh=mesh)


_PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
process, port, data_dir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxar.data import datasets, loader
from jaxar.partition import AXES, batch_sharding
config = datasets.configure({"name": "digits", "data_dir": data_dir, "shift": 1})
devices = np.array(jax.devices())
meshes = {
    "batch": devices.reshape(2, 2, 2),  # a process holds one half of the batch
    "tensor": devices.reshape(2, 4, 1).transpose(1, 2, 0),  # both hold all of it
    "mixed": devices[[0, 4, 1, 5, 2, 6, 3, 7]].reshape(4, 2, 1),  # rows of a process lie apart
}
for name, grid in meshes.items():
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)
    whole = loader.training_set(config, batch_size=16, seed=0)[1]
    batches = loader.train_batches(config, batch_size=16, seed=0, mesh=mesh, start_step=1)
    batch = next(batches)
    batches.close()
    for key, values in {**whole, "image": np.asarray(loader.to_float(whole["image"]))}.items():
        for shard in batch[key].addressable_shards:
            assert np.array_equal(shard.data, values[shard.index]), (name, key)
    rows = loader.addressable_rows(batch_sharding(mesh), 16).tolist()
    assert len(rows) == (16 if name == "tensor" else 8), (name, rows)
    assert name != "mixed" or rows == [r for r in range(16) if r // 2 % 2 == process], rows
print("same")
"""


@pytest.mark.sharded
def test_two_real_processes_make_the_same_batch(data_dir, unused_port):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(index), str(unused_port), data_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert out.strip() == "same", err[-2000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
