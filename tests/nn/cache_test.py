import jax
import jax.numpy as jnp
import numpy as np

from jaxar.nn import cache as kv


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(parts, layers=2):
    cache = kv.create(layers, batch=2, kv_len=8, kv_heads=3, head_dim=4)
    for part in parts:
        for layer in range(layers):
            cache = cache.write(layer, part + layer, -part - layer)
        cache = cache.advance(part.shape[1])
    return cache


def test_parts_are_stored_one_after_another_in_every_layer():
    parts = [normal(2, 3, 3, 4), normal(2, 1, 3, 4, seed=1), normal(2, 2, 3, 4, seed=2)]
    cache = filled(parts)
    assert cache.length == 6
    for layer in range(2):
        k, v = cache.read(layer, 6)
        np.testing.assert_array_equal(k, jnp.concatenate(parts, axis=1) + layer)
        np.testing.assert_array_equal(v, -k)
    assert cache.read(0)[0].shape == (2, 8, 3, 4)


def test_truncation_forgets_and_the_next_write_overwrites():
    parts = [normal(2, 5, 3, 4), normal(2, 2, 3, 4, seed=1)]
    cache = filled(parts[:1]).truncate(jnp.int32(2))
    assert cache.length == 2
    cache = cache.write(0, parts[1], parts[1]).advance(2)
    np.testing.assert_array_equal(cache.read(0, 4)[0], jnp.concatenate([parts[0][:, :2], parts[1]], axis=1))
    assert cache.truncate(jnp.int32(7)).length == 4  # never grows


def test_samples_may_have_their_own_lengths():
    first, second = normal(2, 5, 3, 4), normal(2, 2, 3, 4, seed=1)
    cache = filled([first]).truncate(jnp.array([4, 1]))
    np.testing.assert_array_equal(cache.positions(2), [[4, 5], [1, 2]])
    cache = jax.jit(lambda c, layer: c.write(layer, second, second).advance(2))(cache, 1)
    np.testing.assert_array_equal(cache.length, [6, 3])
    k, _ = cache.read(1)
    np.testing.assert_array_equal(k[0, 4:6], second[0])
    np.testing.assert_array_equal(k[1, 1:3], second[1])
    np.testing.assert_array_equal(k[0, :4], first[0, :4] + 1)
    np.testing.assert_array_equal(cache.read(0)[0][:, :5], first)  # the other layer is untouched


def test_places_are_written_anew_and_the_others_stay():
    whole, new = normal(2, 5, 3, 4), normal(2, 2, 3, 4, seed=1)
    cache = kv.create_placed(2, batch=2, places=5, kv_heads=3, head_dim=4)
    for layer in range(2):
        cache = cache.write(layer, whole + layer, -whole - layer).advance(5)
    cache = jax.jit(lambda c, layer: c.at(jnp.array([[3, 0], [1, 5]])).write(layer, new, -new))(cache, 1)
    k, v = cache.read(1)
    expected = np.array(whole + 1)
    expected[0, [3, 0]], expected[1, 1] = new[0], new[1, 0]  # the sequence has no place 5
    np.testing.assert_array_equal(k, expected)
    np.testing.assert_array_equal(v, -expected)
    np.testing.assert_array_equal(cache.read(0, 4)[0], whole[:, :4])


def test_a_cache_may_store_a_narrower_type():
    cache = kv.create(1, 2, 4, 3, 4, "bfloat16").write(0, normal(2, 2, 3, 4), normal(2, 2, 3, 4))
    assert cache.k.dtype == jnp.bfloat16
    np.testing.assert_array_equal(cache.read(0, 2)[0], normal(2, 2, 3, 4).astype(jnp.bfloat16))
