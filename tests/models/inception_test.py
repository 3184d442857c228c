"""The beginning of the Inception network against official numbers; tests/interop/check_test.py has all, slowly."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.interop import drawn_weights, fixtures
from jaxar.interop.families import inception as family
from jaxar.models import inception

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "inception_fid.safetensors"
FIRST = ("Conv2d_2b_3x3", "MaxPool_1", "Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b")
pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def fixture():
    return fixtures.read(GOLDEN)


def preprocessed(fixture, name):
    return inception.preprocess(jnp.asarray(fixture.tensors[name]))


@pytest.fixture(scope="module")
def rows(fixture):
    """How everything compares that needs no layer after the first mixed block."""
    official = family.describe(fixture.models)
    (part,) = official.parts
    variables = part.to_variables(fixture.weights("inception"), "fixture")

    @jax.jit
    def first(variables, images):
        found = official.ours.apply(variables, images)
        return {f"layer/{name}": found[name] for name in FIRST}

    results = {
        "out/32/": first(variables, preprocessed(fixture, "in/images_32")),
        "out/odd/": {},
    }
    images = {"out/32/": "in/images_32", "out/odd/": "in/image_odd"}
    for prefix, parts in results.items():
        parts["resized"] = preprocessed(fixture, images[prefix])
    compared = {}
    for output in fixture.outputs:
        parts = next((p for prefix, p in results.items() if output.name.startswith(prefix)), {})
        if output.part in parts:
            mine = fixtures.selected(fixture, np.asarray(parts[output.part]), output.select)
            compared[output.name] = fixtures.compare(output.name, mine, fixture.tensors[output.name], output.tolerance)
    return compared


def test_images_are_resized_as_tensorflow_did(rows):
    resized = {name: row for name, row in rows.items() if "resized" in name}
    assert len(resized) == 10
    assert all(row.passed and row.max_error < 1e-6 for row in resized.values())


def test_the_first_layers_are_the_official_ones(rows):
    layers = {name: row for name, row in rows.items() if "/layer/" in name}
    assert len(layers) == 17 and not [row for row in layers.values() if not row.passed]


def test_weights_survive_the_way_to_us_and_back(fixture):
    (part,) = family.describe({}).parts
    weights = fixture.weights("inception")
    counted = weights | {"Mixed_7c.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64)}
    back = part.to_official(part.to_variables(counted, "fixture"))
    assert back.keys() == weights.keys() and all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name, change", [("fc.bias", "missing: fc.bias"), ("fc.more", "unknown: fc.more")])
def test_other_names_are_refused(fixture, name, change):
    weights = fixture.weights("inception")
    if name in weights:
        del weights[name]
    else:
        weights[name] = weights["fc.bias"]
    with pytest.raises(ConfigError, match=change):
        family.describe({}).parts[0].to_variables(weights, "fixture")


def drawn(rule, salt="", first=0.0, last=0.0):
    entries = {"a.weight": {"shape": [2, 3], "first": first, "last": last}}
    weights = {"rule": {"*.weight": rule}, "salt": salt, "sha256_of_all_values": {"hex": "?"}}
    return drawn_weights.draw(entries, weights, "fixture")["a.weight"]


def test_weights_are_drawn_by_formula_name_and_salt():
    z = np.random.Generator(np.random.PCG64(3926113458)).standard_normal((2, 3))  # crc32 of "salt" + "a.weight"
    expected = (1 + 0.5 * z * np.sqrt(2 / 3)).astype(np.float32)
    ends = dict(zip(("first", "last"), expected.ravel()[[0, -1]].tolist()))
    np.testing.assert_array_equal(drawn("1 + 0.5*z * sqrt(2 / shape[1])", "salt", **ends), expected)
    with pytest.raises(ConfigError, match=r"1 of the drawn weights are not those of the fixture \(a.weight"):
        drawn("1 + 0.5*z * sqrt(2 / shape[1])", **ends)


@pytest.mark.parametrize("rule", ["__import__('os')", "z.tobytes()", "shape[-z]", "sqrt(z, out=z)"])
def test_a_formula_only_computes(rule):
    with pytest.raises(ConfigError, match="is no formula for drawn weights"):
        drawn(rule)
