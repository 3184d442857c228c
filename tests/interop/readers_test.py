"""One function reads every format and finds the weights inside checkpoints of training."""

import pathlib

import numpy as np
import pytest
from flax import serialization

from jaxar.config import ConfigError
from jaxar.interop import readers, safetensors_file, torch_file

TORCH = pathlib.Path(__file__).parent.parent / "golden" / "torch_checkpoint.pth"
X, Y = np.arange(3, dtype=np.float32), np.ones((2, 2), np.float32)


def msgpack(path, tree):
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def test_torch_weights_lose_their_wrapper_and_prefixes():
    found = readers.read(TORCH)
    assert {"weight", "bias", "transposed"} <= found.keys() and len(found) == 11
    assert all(isinstance(x, np.ndarray) for x in found.values())


def test_safetensors_are_recognised_by_content(tmp_path):
    safetensors_file.write(tmp_path / "weights.bin", {"_orig_mod.module.x": X})
    assert readers.read(tmp_path / "weights.bin").keys() == {"x"}


def test_flax_names_are_joined(tmp_path):
    path = msgpack(tmp_path / "x.msgpack", {"params": {"Embed_0": {"kernel": X}, "bias": Y}})
    found = readers.read(path)
    assert found.keys() == {"Embed_0/kernel", "bias"}
    np.testing.assert_array_equal(found["Embed_0/kernel"], X)


def test_averaged_weights_come_first_unless_an_entry_is_named(tmp_path):
    tree = {"model": {"x": X}, "model_ema": {"x": X + 1}, "epoch": 3}
    path = msgpack(tmp_path / "x.msgpack", tree)
    np.testing.assert_array_equal(readers.read(path)["x"], X + 1)
    np.testing.assert_array_equal(readers.read(path, "model")["x"], X)


def test_nested_entries_are_named_by_their_path(tmp_path):
    path = msgpack(tmp_path / "x.msgpack", {"trainer": {"net": {"x": X}, "step": 1}})
    assert readers.read(path, "trainer/net").keys() == {"x"}
    with pytest.raises(ConfigError, match="no entry 'trainer/nett'; at 'nett' there are net, step"):
        readers.read(path, "trainer/nett")
    with pytest.raises(ConfigError, match="trainer/step are no arrays; name the entry that holds the weights"):
        readers.read(path)


def test_names_that_differ_in_prefixes_alone_are_refused(tmp_path):
    safetensors_file.write(tmp_path / "x.safetensors", {"module.x": X, "x": X})
    with pytest.raises(ConfigError, match="differ only in the prefixes"):
        readers.read(tmp_path / "x.safetensors")


UNREADABLE = [
    (b"", "x.pth is neither"),
    (b"text", "x.pth is neither"),
    (torch_file.OLD + b"broken", "x.pth cannot be read as a file of torch.save"),
    (b"\x82\xa1x", "x.pth is no whole msgpack file"),
    (b"PK\x03\x04broken", "x.pth cannot be read as a file of torch.save"),
]


@pytest.mark.parametrize("content, message", UNREADABLE)
def test_other_and_damaged_files_are_one_error(content, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        readers.read(tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="is no file"):
        readers.read(tmp_path / "absent.pth")
