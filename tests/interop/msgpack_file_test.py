"""Flax's msgpack files without Flax: the same trees, and files that ask for more than they hold."""

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization

from jaxar.config import ConfigError
from jaxar.interop import msgpack_file

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def stored(path, content):
    path.write_bytes(content)
    return path


def test_trees_are_those_of_the_library(tmp_path):
    tree = {
        "params": {"kernel": X, "half": X.astype(jnp.bfloat16), "ids": np.arange(300), "none": np.zeros((0, 2))},
        "step": np.int32(70_000),
        "values": [None, True, -1, -200, 7, 2**40, 0.5, "text" * 20, b"bytes"],
        "many": {str(i): i for i in range(20)},
    }
    found = msgpack_file.read(stored(tmp_path / "x", serialization.msgpack_serialize(tree)))
    expected = serialization.msgpack_restore(serialization.msgpack_serialize(tree))
    for name, array in expected["params"].items():
        assert found["params"][name].dtype == array.dtype and not found["params"][name].flags.writeable
        np.testing.assert_array_equal(found["params"][name], array)
    assert found["step"] == 70_000 and found["many"] == expected["many"]
    assert [bytes(v) if isinstance(v, memoryview) else v for v in found["values"]] == expected["values"]


def test_pieces_of_large_arrays_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 8)
    content = serialization.msgpack_serialize({"x": X})
    assert b"chunked" in content
    np.testing.assert_array_equal(msgpack_file.read(stored(tmp_path / "x", content))["x"], X)


def array(shape, dtype, content):
    return msgpack.packb({"x": msgpack.ExtType(1, msgpack.packb([shape, dtype, content]))})


DAMAGED = {
    "cut": (serialization.msgpack_serialize({"x": X})[:-1], "bytes are wanted"),
    "more": (serialization.msgpack_serialize({"x": X}) + b"\x00", "1 bytes follow its end"),
    "a long list": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "4294967295 entries are wanted where 0 bytes"),
    "nested": (b"\x81\xa1x" + b"\x91" * 1000 + b"\x00", "nested more than 64 deep"),
    "a short array": (array([2, 3], "float32", b"\x00" * 20), "has 20 bytes"),
    "a negative shape": (array([-2, -3], "float32", b"\x00" * 24), "has the shape"),
    "objects": (array([1], "O", b"\x00" * 8), "dtype 'O'"),
    "no dtype": (array([1], "float33", b"\x00" * 4), "float33"),
    "keys that are numbers": (b"\x81\x01\x02", "the key 1 is no text"),
    "a key twice": (b"\x82\xa1x\x01\xa1x\x02", "'x' is no text or occurs twice"),
    "no text": (b"\x81\xa1\xff\x01", "utf-8"),
    "an unused byte": (b"\x81\xa1x\xc1", "0xc1 begins no item"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_one_error(what, tmp_path):
    content, message = DAMAGED[what]
    with pytest.raises(ConfigError, match=f"is no whole msgpack file.*{message}"):
        msgpack_file.read(stored(tmp_path / "x", content))


def test_unknown_extensions_are_dropped(tmp_path):
    content = msgpack.packb({"x": msgpack.ExtType(2, msgpack.packb([1.0, 2.0])), "y": msgpack.ExtType(9, b"abcd")})
    assert msgpack_file.read(stored(tmp_path / "x", content)) == {"x": None, "y": None}
