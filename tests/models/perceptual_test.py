import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.signal import correlate2d

from jaxar.config import ConfigError
from jaxar.models import perceptual

# A VGG16 of two and three channels under the names of the published state dict.
SLICES = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
WIDTHS = {1: 2, 2: 3, 3: 2, 4: 3, 5: 2}


def thin_weights():
    rng, width, tensors = np.random.default_rng(0), 3, {}
    for s, indices in SLICES.items():
        for i in indices:
            tensors[f"net.slice{s}.{i}.weight"] = rng.normal(size=(WIDTHS[s], width, 3, 3)) * (2 / (9 * width)) ** 0.5
            tensors[f"net.slice{s}.{i}.bias"] = rng.normal(size=WIDTHS[s]) * 0.1
            width = WIDTHS[s]
        tensors[f"lin{s - 1}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("lpips") / "vgg.safetensors")
    save_file(thin_weights() | {"scaling_layer.shift": np.zeros(3, np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32) for _ in range(2)]


def numpy_features(tensors, image):
    """Unit-length features of one image [h w 3] after each slice, written as loops over channels."""
    x = ((image - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]).transpose(2, 0, 1)
    for s, indices in SLICES.items():
        if s > 1:
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
        for i in indices:
            kernel, bias = tensors[f"net.slice{s}.{i}.weight"], tensors[f"net.slice{s}.{i}.bias"]
            x = np.stack([sum(map(lambda a, k: correlate2d(a, k, "same"), x, ks)) for ks in kernel])
            x = np.maximum(x + bias[:, None, None], 0)
        yield x / (np.sqrt((x**2).sum(axis=0)) + 1e-10)


def test_distance_against_loops_in_numpy(weights, pair):
    tensors, expected = thin_weights(), []
    for a, b in zip(*map(np.asarray, pair)):
        slices = zip(numpy_features(tensors, a), numpy_features(tensors, b), strict=True)
        heads = (tensors[f"lin{s}.model.1.weight"][0, :, 0, 0] for s in range(5))
        expected.append(sum(np.einsum("chw,c->hw", (f - g) ** 2, w).mean() for (f, g), w in zip(slices, heads)))
    params = perceptual.load(weights, "method.perceptual.weights")
    np.testing.assert_allclose(jax.jit(perceptual.distance)(params, *pair), expected, rtol=1e-4)


def test_gradient_is_finite_even_where_all_features_vanish(weights, pair):
    params = perceptual.load(weights, "method.perceptual.weights")
    dead = jax.tree.map(lambda x: x - 100 if x.ndim == 1 and len(x) < 3 else x, params["convs"])
    gradient = jax.jit(jax.grad(lambda x, p: perceptual.distance(p, x, pair[1]).sum()))
    for convs in (params["convs"], dead):
        assert jnp.all(jnp.isfinite(gradient(pair[0], {**params, "convs": convs})))


def test_grey_images_count_as_three_equal_channels(weights, pair):
    params, distance = perceptual.load(weights, "method.perceptual.weights"), jax.jit(perceptual.distance)
    grey = [x[..., :1] for x in pair]
    colour = [jnp.tile(x, 3) for x in grey]
    np.testing.assert_allclose(distance(params, *grey), distance(params, *colour), rtol=1e-6)
    np.testing.assert_allclose(distance(params, grey[0], grey[0]), 0, atol=1e-12)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.x='/nowhere' is no file"):
        perceptual.load("/nowhere", "method.x")
    garbage = tmp_path / "weights.pth"
    garbage.write_bytes(b"not safetensors at all")
    with pytest.raises(ConfigError, match=r"is not a \.safetensors file"):
        perceptual.load(str(garbage), "method.x")
    part = str(tmp_path / "part.safetensors")
    save_file({k: v for k, v in thin_weights().items() if k != "lin3.model.1.weight"}, part)
    with pytest.raises(ConfigError, match=r"lacks 'lin3\.model\.1\.weight'"):
        perceptual.load(part, "method.x")
