"""The section `model` chooses a network by name."""

import jax
import jax.numpy as jnp
import pytest

from jaxar.config import ConfigError, parse
from jaxar.models import dit, maps, unet, vector

SECTIONS = [
    ({"num_layers": 1, "width": 8, "num_heads": 2}, dit.DiT),
    ({"name": "dit", "num_layers": 1, "width": 8, "num_heads": 2}, dit.DiT),
    ({"name": "unet", "channels": 8, "multipliers": [1], "num_blocks": 1, "attention": [], "num_heads": 2}, unet.UNet),
    ({"name": "vector", "num_layers": 1, "width": 8}, vector.VectorNetwork),
]


@pytest.mark.parametrize("section, kind", SECTIONS)
def test_all_take_the_same_inputs_and_give_the_channels_asked_for(section, kind):
    network = maps.network(parse(maps.Sizes, section, "model"), (4, 4, 2), 4, 3)
    assert isinstance(network, kind)
    x, t, labels = jnp.zeros((2, 4, 4, 2)), jnp.zeros(2), jnp.array([0, 3])
    shapes = jax.eval_shape(lambda key: network.init_with_output(key, x, t, labels)[0], jax.random.key(0))
    assert shapes.shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "unt"}, "unknown value of model.name 'unt'; known: dit, unet, vector; did you mean 'unet'?"),
        ({"name": "unet", "width": 8}, "unknown key 'model.width'"),
        ({"name": "vector", "num_layers": -1}, "model.num_layers=-1 must be at least 0"),
        ({"name": "vector", "width": 0}, "model.width=0"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        parse(maps.Sizes, section, "model")


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="model.patch_size=2 does not divide maps of 3x3"):
        maps.network(dit.Sizes(), (3, 3, 1), 1, 1)
