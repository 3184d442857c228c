import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import partition
from jaxar.models.classifier import Classifier

MODEL = Classifier(widths=(4, 8), feature_dim=6, num_classes=5)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


def test_every_parameter_has_logical_axes(params):
    mesh = partition.single_device_mesh()
    assert set(params) == {"conv0", "conv1", "features", "logits"}
    boxes = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "names"))
    assert len(boxes) == 8 and all(hasattr(box, "names") for box in boxes)
    partition.shardings_of(params, mesh)


def test_logits_are_linear_in_the_features(params):
    params = jax.tree.map(lambda box: box.unbox(), params, is_leaf=lambda x: hasattr(x, "names"))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    features, logits = MODEL.apply({"params": params}, images)
    assert features.shape == (3, 6) and logits.shape == (3, 5)
    expected = features @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert np.all(features > -0.2)  # of GELU
