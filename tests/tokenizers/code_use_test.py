import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.tokenizers import _code_use
from jaxar.tokenizers.base import TokenSpec

TWO_SCALES = TokenSpec("discrete", ((1, 1), (2, 2)), channels=3, vocab_size=4)
ONE_SCALE = TokenSpec("discrete", ((2, 2),), channels=3, vocab_size=4)


def test_frequencies_count_each_scale_apart():
    ids = jnp.asarray([[0, 1, 1, 2, 3], [2, 1, 1, 1, 1]])
    expected = [[1 / 2, 0, 1 / 2, 0], [0, 6 / 8, 1 / 8, 1 / 8]]
    np.testing.assert_allclose(_code_use.frequencies(ids, TWO_SCALES), expected)


def test_pooled_weighs_scales_by_their_tokens():
    frequency = jnp.asarray([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]])
    np.testing.assert_allclose(_code_use.pooled(frequency, TWO_SCALES), [0.2, 0.4, 0.4, 0])


@pytest.mark.parametrize(
    "frequency, expected",
    [([0.25] * 4, 4), ([1, 0, 0, 0], 1), ([0.5, 0.5, 0, 0], 2), ([0.5, 0.25, 0.25, 0], 2**1.5)],
)
def test_perplexity_in_closed_form(frequency, expected):
    np.testing.assert_allclose(_code_use.perplexity(jnp.asarray(frequency, jnp.float32)), expected, rtol=1e-6)


def test_metrics_per_scale():
    frequency = jnp.asarray([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    figures = _code_use.metrics(frequency, TWO_SCALES)
    assert set(figures) == {f"{n}{s}" for n in ("code_use", "perplexity") for s in ("", "/1x1", "/2x2")}
    np.testing.assert_allclose([figures["code_use/1x1"], figures["code_use/2x2"]], [0.25, 1.0])
    np.testing.assert_allclose([figures["perplexity/1x1"], figures["perplexity/2x2"]], [1, 4], rtol=1e-6)
    assert set(_code_use.metrics(frequency[:1], ONE_SCALE)) == {"code_use", "perplexity"}


def test_update_keeps_recent_features_and_running_frequencies():
    use = _code_use.create(jnp.zeros((4, 3)), 1)
    features = jnp.arange(12.0).reshape(1, 4, 3)
    full = _code_use.update(use, jnp.asarray([[1.0, 0, 0, 0]]), features, 0.9)
    np.testing.assert_array_equal(full["features"], features[0])
    np.testing.assert_allclose(full["frequencies"], [[0.9 / 4 + 0.1, 0.9 / 4, 0.9 / 4, 0.9 / 4]])
    # A batch with fewer features pushes out the oldest, a larger one enters evenly spaced.
    part = _code_use.update(full, full["frequencies"], -features[:, :1], 0.9)
    np.testing.assert_array_equal(part["features"], np.concatenate([-features[0, :1], features[0, :3]]))
    many = _code_use.update(full, full["frequencies"], jnp.arange(24.0).reshape(2, 4, 3), 0.9)
    np.testing.assert_array_equal(many["features"], np.arange(24.0).reshape(8, 3)[::2])


def test_revive_replaces_dead_codes_and_leaves_live_ones_alone():
    codebook = jax.random.normal(jax.random.key(0), (4, 3))
    use = {"frequencies": jnp.asarray([[0.6, 0.395, 0.005, 0]]), "features": jnp.arange(12.0).reshape(4, 3)}
    revive = jax.jit(_code_use.revive, static_argnums=(2, 3))
    revived, after = revive(codebook, use, ONE_SCALE, 0.1, jax.random.key(1))
    np.testing.assert_array_equal(revived[:2], codebook[:2])
    # The dead take distinct recent features, and count as used again.
    rows = {tuple(np.asarray(row)) for row in revived[2:]}
    assert len(rows) == 2 and rows <= {tuple(row) for row in np.arange(12.0).reshape(4, 3)}
    np.testing.assert_allclose(after["frequencies"].sum(), 1, rtol=1e-6)
    assert after["frequencies"].min() > 0.1 / 4
    np.testing.assert_array_equal(after["features"], use["features"])
    other, _ = revive(codebook, use, ONE_SCALE, 0.1, jax.random.key(2))
    assert not np.array_equal(other, revived)


def test_a_code_used_at_one_scale_alone_lives():
    use = {"frequencies": jnp.asarray([[0.0, 0, 0, 1], [0.4, 0.3, 0.3, 0]]), "features": jnp.zeros((4, 3))}
    codebook = jnp.ones((4, 3))
    revived, _ = _code_use.revive(codebook, use, TWO_SCALES, 0.1, jax.random.key(0))
    np.testing.assert_array_equal(revived, codebook)


def test_an_unused_code_dies_after_the_documented_time():
    guard = _code_use.CodeGuard(decay=0.9, revive_below=0.1)
    use = _code_use.create(jnp.ones((4, 3)), 1)
    step = jax.jit(lambda u: _code_use.update(u, jnp.asarray([[0.5, 0.5, 0.0, 0.0]]), jnp.zeros((1, 4, 3)), 0.9))
    batches = 0
    while True:
        use, batches = step(use), batches + 1
        params = {"codebook": jnp.ones((4, 3))}
        after, _ = _code_use.project(params, {"code_use": use}, ONE_SCALE, guard, jax.random.key(0))
        if not np.array_equal(after["codebook"], params["codebook"]):
            break
    assert batches == np.ceil(np.log(0.1) / np.log(0.9))


def test_the_guard_can_be_switched_off():
    guard = _code_use.CodeGuard(revive_below=None)
    params = {"codebook": jnp.ones((4, 3))}
    collections = {"code_use": {"frequencies": jnp.asarray([[1.0, 0, 0, 0]]), "features": jnp.zeros((4, 3))}}
    after = _code_use.project(params, collections, ONE_SCALE, guard, jax.random.key(0))
    assert after == (params, collections)


@pytest.mark.parametrize("kwargs", [{"decay": 1.0}, {"revive_below": 0.0}])
def test_guard_mistakes(kwargs):
    with pytest.raises(ConfigError, match=r"guard\.\w+=.* of a tokenizer"):
        _code_use.CodeGuard(**kwargs)
