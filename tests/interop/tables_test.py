"""Name tables: both directions, and errors that list everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.interop import tables
from jaxar.interop.tables import CONV, LINEAR, NEW_AXIS, Table, fused, joined, layers, merge_heads, one, split_heads

TABLE = Table(
    (
        one("embedding", "emb.weight"),
        layers("stack/out", "blocks.{}.proj.weight", 2, merge_heads(2)),
        fused(
            ["stack/query", "stack/key"],
            [f"blocks.{i}.qk.weight" for i in range(2)],
            (4, 2),
            [split_heads(2), split_heads(1)],
        ),
        one("head", "head.weight", LINEAR.then(NEW_AXIS)),
        joined("classes", {"labels.weight": 3, "null": 1}),
    ),
    derived={"buffer": lambda: np.arange(3)},
    kept={"counter": (5,)},
)
SHAPES = {"embedding": (7, 6), "stack/out": (2, 2, 2, 6), "stack/query": (2, 6, 2, 2), "stack/key": (2, 6, 1, 2)}
OURS = {
    path: jax.ShapeDtypeStruct(shape, jnp.float32)
    for path, shape in (SHAPES | {"head": (1, 6, 3), "classes": (4, 5)}).items()
}


@pytest.fixture
def official():
    shapes = {"emb.weight": (7, 6), "head.weight": (3, 6), "labels.weight": (3, 5), "null": (1, 5)}
    for i in range(2):
        shapes |= {f"blocks.{i}.proj.weight": (6, 4), f"blocks.{i}.qk.weight": (6, 6)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_official_to_ours_and_back_gives_the_same_bits(official):
    ours = TABLE.to_ours(official | {"buffer": np.arange(3), "counter": np.zeros(5)}, OURS, "file")
    assert {path: array.shape for path, array in ours.items()} == {path: x.shape for path, x in OURS.items()}
    back = TABLE.to_official(ours)
    np.testing.assert_array_equal(back.pop("buffer"), np.arange(3))
    assert back.keys() == official.keys()
    for name in official:
        np.testing.assert_array_equal(back[name], official[name], err_msg=name)


def test_joined_arrays_follow_one_another(official):
    ours = TABLE.to_ours(official, OURS, "file")
    np.testing.assert_array_equal(ours["classes"][:3], official["labels.weight"])
    np.testing.assert_array_equal(ours["classes"][3:], official["null"])
    with pytest.raises(ConfigError, match=r"wrongly shaped: null \[2, 5\] in place of \[1, 5\]"):
        TABLE.to_ours(official | {"null": np.zeros((2, 5), np.float32)}, OURS, "file")


def test_a_fused_projection_is_cut_by_rows_and_split_into_heads(official):
    ours = TABLE.to_ours(official, OURS, "file")
    x, weight = np.arange(6.0), official["blocks.1.qk.weight"]
    both = weight @ x
    np.testing.assert_allclose(np.einsum("d,dhe->he", x, ours["stack/query"][1]), both[:4].reshape(2, 2), rtol=1e-5)
    np.testing.assert_allclose(np.einsum("d,dhe->he", x, ours["stack/key"][1]), both[4:].reshape(1, 2), rtol=1e-5)
    heads = np.arange(4.0)
    out = np.einsum("he,hed->d", heads.reshape(2, 2), ours["stack/out"][0])
    np.testing.assert_allclose(out, official["blocks.0.proj.weight"] @ heads, rtol=1e-5)


def test_a_projection_may_also_be_fused_by_columns():
    entry = fused(["query", "key"], "qk", (4, 2), [LINEAR.then(split_heads(2)), LINEAR.then(split_heads(1))], axis=1)
    official = {"qk": np.random.default_rng(0).normal(size=(3, 6))}
    ours = entry.to_ours(official)
    np.testing.assert_array_equal(ours["query"], official["qk"][:, :4].reshape(3, 2, 2))
    np.testing.assert_array_equal(ours["key"], official["qk"][:, 4:].reshape(3, 1, 2))
    np.testing.assert_array_equal(entry.to_official(ours)["qk"], official["qk"])
    assert entry.official_shapes({path: array.shape for path, array in ours.items()}) == {"qk": (3, 6)}


def test_a_convolution_keeps_its_window():
    official = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    ours = CONV.to_ours(official)
    assert ours.shape == (5, 4, 3, 2) and ours[4, 1, 2, 0] == official[0, 2, 4, 1]
    np.testing.assert_array_equal(CONV.to_official(ours), official)


def test_one_error_lists_everything_that_does_not_fit(official):
    official["emb.weight"] = official["emb.weight"][:, :5]
    official["counter"] = np.zeros(4)
    official["more"] = np.zeros(1)
    del official["head.weight"], official["blocks.0.qk.weight"]
    with pytest.raises(ConfigError) as error:
        TABLE.to_ours(official, OURS, "file (net)")
    assert str(error.value) == (
        "file (net) does not fit its architecture: missing: blocks.0.qk.weight, head.weight; unknown: more; wrongly "
        "shaped: counter [4] in place of [5], emb.weight [7, 5] in place of [7, 6]; correct the architecture or the "
        "file"
    )


def test_long_lists_of_names_are_cut(official):
    official |= {f"x{i:03}": np.zeros(1) for i in range(60)}
    with pytest.raises(ConfigError, match="x049 and 10 more"):
        TABLE.to_ours(official, OURS, "file")


def test_buffers_must_be_what_the_architecture_gives(official):
    with pytest.raises(ConfigError, match="buffer differ from what the architecture gives"):
        TABLE.to_ours(official | {"buffer": np.arange(3) + 1}, OURS, "file")


def test_numbers_must_fit_into_our_dtype(official):
    official["head.weight"] = official["head.weight"].astype(jnp.bfloat16)
    ours = TABLE.to_ours(official, OURS, "file")
    assert ours["head"].dtype == np.float32
    np.testing.assert_array_equal(TABLE.to_official(ours)["head.weight"].astype(jnp.bfloat16), official["head.weight"])
    official["head.weight"] = np.full((3, 6), 1 / 3)
    with pytest.raises(ConfigError, match="head.weight is float64 and does not fit into float32"):
        TABLE.to_ours(official, OURS, "file")


def test_shapes_are_found_without_arrays():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    assert tables.one("a", "b", LINEAR).official_shapes({"a": huge.shape}) == {"b": (10**6, 10**6)}
