"""The safetensors format against the library, and files that are not whole."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxar.config import ConfigError
from jaxar.interop import safetensors_file

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -np.inf], np.float16),
    "ids": np.array([[1], [-2]], np.int64),
    "scalar": np.array(2.5, np.float64),
    "seen": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.int32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_reads_what_the_library_writes(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"a": "b"})
    found = safetensors_file.read(tmp_path / "x.safetensors")
    same(found, ARRAYS)
    assert type(found["a"]) is np.ndarray and not found["a"].flags.writeable


def test_the_library_reads_what_is_written(tmp_path):
    safetensors_file.write(tmp_path / "x.safetensors", ARRAYS | {"turned": ARRAYS["a"].T}, {"a": "b"})
    same(load_file(tmp_path / "x.safetensors"), ARRAYS | {"turned": np.ascontiguousarray(ARRAYS["a"].T)})


def test_bfloat16_and_empty_files_survive(tmp_path):
    arrays = {"x": np.array([1.0, 3.140625], jnp.bfloat16)}
    safetensors_file.write(tmp_path / "x.safetensors", arrays)
    same(safetensors_file.read(tmp_path / "x.safetensors"), arrays)
    safetensors_file.write(tmp_path / "empty.safetensors", {})
    assert safetensors_file.read(tmp_path / "empty.safetensors") == {}


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGED = {
    "a hole": {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])},
    "an overlap": {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
    "another shape": {"a": entry(0, 12, [4])},
    "a negative shape": {"a": entry(0, 12, [-3, -1])},
    "bytes left over": {"a": entry(0, 8, [2])},
    "bytes beyond the end": {"a": entry(0, 16, [4])},
    "an unknown dtype": {"a": entry(0, 12, [3], "F8")},
    "no offsets": {"a": {"dtype": "F32", "shape": [3]}},
    "a list": [1],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_headers_that_do_not_describe_the_file_are_refused(case, tmp_path):
    header = json.dumps(DAMAGED[case]).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        safetensors_file.read(tmp_path / "x.safetensors")


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_file.write(path, ARRAYS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="is no whole safetensors file"):
            safetensors_file.read(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    header = b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ConfigError, match="a name occurs twice"):
        safetensors_file.read(tmp_path / "x.safetensors")
