import flax.linen as nn
import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_variables():
    """init function -> variables of its shapes, drawn in numpy: compiling an initializer costs seconds."""

    def draw(init):
        rng = np.random.default_rng(0)

        def fill(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name.endswith("frequencies"):
                return jax.numpy.full(leaf.shape, 1 / leaf.shape[-1])
            fan_in = np.prod(leaf.shape[-4:-1]) if name.endswith("kernel") else 1
            value = rng.normal(size=leaf.shape) * fan_in**-0.5
            return jax.numpy.asarray(value + name.endswith("scale"), leaf.dtype)

        return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(jax.eval_shape(init, jax.random.key(0))))

    return draw
