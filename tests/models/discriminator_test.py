import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxar.config import ConfigError
from jaxar.models.discriminator import Discriminator, Sizes


def logits_shape(sizes, side):
    module = Discriminator(sizes)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    out, _ = jax.eval_shape(lambda k, x: module.init_with_output(k, x), jax.random.key(0), images)
    return out.shape


def test_one_logit_per_patch():
    assert logits_shape(Sizes(), 256) == (2, 30, 30)  # the published discriminator of 256-pixel images
    assert logits_shape(Sizes(channels=8, num_layers=1, groups=4), 8) == (2, 2, 2)


def test_depth_and_width():
    shapes = jax.eval_shape(Discriminator(Sizes(8, 4, 4)).init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    params = nn.meta.unbox(shapes)["params"]
    assert [params[f"conv_{i}"]["kernel"].shape[-1] for i in range(5)] == [8, 16, 32, 64, 64]  # at most eight times
    assert set(shapes) == {"params"}  # no running statistics


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Sizes(num_layers=0), "model.num_layers=0"),
        (lambda: Sizes(channels=20), "model.groups=32"),
        (lambda: Sizes().check(8), "use at most 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("side, deepest", [(8, 1), (16, 2), (32, 3), (256, 6)])
def test_the_depth_that_errors_advise_works(side, deepest):
    Sizes(num_layers=deepest).check(side)
    with pytest.raises(ConfigError):
        Sizes(num_layers=deepest + 1).check(side)
    assert min(logits_shape(Sizes(channels=4, num_layers=deepest, groups=4), side)) >= 1
