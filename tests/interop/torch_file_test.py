"""Files of torch.save: a real one (tests/golden/torch_checkpoint.json says what is in it), hostile and damaged ones."""

import os
import pathlib
import pickle
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.interop import torch_file

STAND_INS = ("torch", "torch._utils", "somewhere")  # modules of this test, which must not be left behind
NONE = types.MappingProxyType({})
REAL = pathlib.Path(__file__).parent.parent / "golden" / "torch_checkpoint.pth"


def test_a_real_checkpoint_gives_its_arrays_and_inert_objects_for_the_rest():
    found = torch_file.read(REAL)
    a, model = np.arange(6, dtype=np.float32).reshape(2, 3), found["model"]
    expected = {
        "transposed": a.T,
        "last_row": a[1],
        "half": a.astype(np.float16),
        "brain": a.astype(jnp.bfloat16),
        "ids": np.arange(4),
        "seen": np.array([True, False]),
        "parameter": a + 1,
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
    }
    for name, array in expected.items():
        assert (model[f"module.{name}"].dtype, model[f"module.{name}"].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(model[f"module.{name}"], array, err_msg=name)
    assert found["epoch"] == 3 and found["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert vars(found["args"]) == {}
    assert "torch" not in sys.modules


class Call:
    """Pickles as the call of a global with arguments."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class Storage:
    """Pickles as a reference to a storage of an archive."""

    def __init__(self, key, numel, kind="FloatStorage"):
        self.reference = ("storage", stand_in("torch", kind), key, "cpu", numel)


def stand_in(module, name):
    """A function that pickles as the global module.name, which need not exist."""
    assert module in STAND_INS
    sys.modules.setdefault(module.partition(".")[0], types.ModuleType("package"))
    found = sys.modules.setdefault(module, types.ModuleType(module))
    if not hasattr(found, name):
        made = types.FunctionType((lambda *args: None).__code__, {}, name)
        made.__module__, made.__qualname__ = module, name
        setattr(found, name, made)
    return getattr(found, name)


@pytest.fixture
def save(tmp_path):
    """Writes an archive around an object."""

    def save(value, storages=NONE, compression=zipfile.ZIP_STORED):
        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                return item.reference if isinstance(item, Storage) else None

        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w", compression) as archive:
            with archive.open("x/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(value)
            for key, array in storages.items():
                archive.writestr(f"x/data/{key}", array.tobytes())
        return path

    yield save
    for name in STAND_INS:
        sys.modules.pop(name, None)


def tensor(storage, offset, shape, strides):
    rebuild = stand_in("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, {})


FOUR = {"0": np.arange(4, dtype=np.float32)}


def test_the_archives_of_these_tests_are_read(save):
    path = save({"a": tensor(Storage("0", 4), 1, (2,), (2,))}, FOUR)
    np.testing.assert_array_equal(torch_file.read(path)["a"], [1.0, 3.0])


def test_a_hostile_pickle_does_nothing(save, tmp_path):
    mark = tmp_path / "executed"
    hostile = [
        Call(os.system, f"touch {mark}"),
        Call(eval, f"open({str(mark)!r}, 'w')"),
        Call(pathlib.Path.touch, mark),
        Call(__import__, "antigravity"),
    ]
    found = torch_file.read(save({"weights": hostile, "a": tensor(Storage("0", 4), 0, (4,), (1,))}, FOUR))
    assert not mark.exists() and "antigravity" not in sys.modules
    np.testing.assert_array_equal(found["a"], FOUR["0"])
    assert {type(x).__name__ for x in found["weights"]} == {"_Inert"}


def test_a_pickle_cannot_change_what_the_reader_uses(save):
    """The state of an object sets attributes where pickle is left alone; on a function that would be its code."""
    change = Call(stand_in("torch._utils", "_rebuild_parameter"), 1, state=(None, {"__defaults__": (1, 2, 3)}))
    inert = Call(stand_in("somewhere", "Thing"), state={"__class__": 3, "append": 4})
    found = torch_file.read(save([change, inert]))
    assert found[0] == 1 and vars(found[1]) == {}


BEYOND = {
    "beyond the end": (2, (3,), (1,)),
    "beyond the end by strides": (0, (2, 2), (3, 1)),
    "before the start": (-1, (2,), (1,)),
    "backwards": (3, (2,), (-1,)),
    "shape without strides": (0, (2, 2), (1,)),
    "enormous": (0, (10**9, 10**9), (0, 0)),
    "no numbers": (0, ("a",), (1,)),
}


@pytest.mark.parametrize("case", BEYOND)
def test_tensors_must_lie_within_their_storage(case, save):
    with pytest.raises(ConfigError, match="is refused: |its tensors are larger"):
        torch_file.read(save(tensor(Storage("0", 4), *BEYOND[case]), FOUR))


@pytest.mark.parametrize("reference", [("0", 5), ("0", 4, "LongStorage"), ("../0", 4), ("1", 4), ("0", 4, "Thing")])
def test_storages_must_be_what_the_pickle_says(reference, save):
    with pytest.raises(ConfigError, match="storage .* holds|unknown type or name|cannot be read"):
        torch_file.read(save(tensor(Storage(*reference), 0, (1,), (1,)), FOUR))


def test_compressed_members_are_refused(save):
    path = save(tensor(Storage("0", 10**6), 0, (1,), (1,)), {"0": np.zeros(10**6, np.float32)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(ConfigError, match="compressed"):
        torch_file.read(path)


def test_every_truncation_is_one_error(tmp_path):
    whole = REAL.read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "x.pth").write_bytes(whole[:size])
        with pytest.raises(ConfigError):
            torch_file.read(tmp_path / "x.pth")


OLD = REAL.with_name("torch_legacy.pth")


def test_a_file_of_the_old_format_gives_its_arrays():
    found = torch_file.read(OLD)
    base, weights = np.arange(12, dtype=np.float32).reshape(3, 4), found["state_dict"]
    expected = {
        "a": base,
        "b": base.T,
        "c": base.ravel()[4:8],
        "d": np.array(7),
        "e": jnp.array([1.5, -2], jnp.bfloat16),
    }
    assert found["epoch"] == 3 and weights.keys() == expected.keys()
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype, name
        np.testing.assert_array_equal(weights[name], array, err_msg=name)


def changed(old, new):
    content = OLD.read_bytes()
    assert content.count(old) >= 1
    return content.replace(old, new)


DAMAGED_OLD = {
    "cut": (OLD.read_bytes()[:-1], "storage '.*' does not hold"),
    "of another version": (changed(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xea\x03."), "is refused: its version is 1002"),
    "of another byte order": (changed(b"endianq\x02\x88", b"endianq\x02\x89"), "its system .*False"),
    "of a longer storage": (changed(b"h\tK\x0cNtq\x12", b"h\tK\x0dNtq\x12"), "storage '.*' is described in two ways"),
    "whose view is too long": (changed(b"QK\x00K\x03K\x04\x86", b"QK\x01K\x03K\x04\x86"), "ends beyond its storage"),
}


@pytest.mark.parametrize("what", DAMAGED_OLD)
def test_an_old_file(what, tmp_path):
    content, message = DAMAGED_OLD[what]
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        torch_file.read(tmp_path / "x.pth")
