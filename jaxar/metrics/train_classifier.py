"""Trains a committed feature network again: `python -m jaxar.metrics.train_classifier --dataset=digits`.

Everything is seeded: the same machine type gives the same weights up to rounding. Another file means another metric, so
numbers made with different weight files cannot be compared; evaluations record the file's sha256.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar import cli
from jaxar.config import unknown
from jaxar.data import datasets
from jaxar.data.base import DataConfig
from jaxar.metrics import classifier
from jaxar.metrics.classifier import FeatureNet
from jaxar.metrics.reference import read_split
from jaxar.models.classifier import Classifier
from jaxar.typing import Array, Float, Key, Params


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network of one dataset is trained.

    Attributes:
      widths, feature_dim: sizes of the network, see `Classifier`.
      epochs: passes over the training split.
      shift: largest random shift in pixels; black pixels fill the gap.
      weight_decay: of AdamW, relative to the learning rate.
    """

    widths: tuple[int, ...]
    feature_dim: int
    epochs: int
    shift: int
    weight_decay: float
    learning_rate: float = 3e-3
    batch_size: int = 96


# No label smoothing: it pulls each class into a point, and the distance then hardly sees what happens within a class.
RECIPES = {
    "digits": Recipe(widths=(32, 64), feature_dim=64, epochs=100, shift=1, weight_decay=0.1),
    "glyphs": Recipe(widths=(16, 32, 64), feature_dim=64, epochs=4, shift=0, weight_decay=0.1),
}


def main(argv: list[str]) -> None:
    """Trains on the training split, measures accuracy on the test split and writes the weight file."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="default: the committed file")
    args = parser.parse_args(argv)
    if args.dataset not in RECIPES:
        raise unknown("dataset", args.dataset, RECIPES)
    config = datasets.configure({"name": args.dataset})
    net = fit(RECIPES[args.dataset], config, jax.random.key(args.seed))
    output = args.output or classifier.weight_file(args.dataset)
    classifier.write(output, net)
    print(f"{output}: test accuracy {net.test_accuracy:.4f}, sha256 {classifier.read(output).sha256}")


def fit(recipe: Recipe, config: DataConfig, key: Key) -> FeatureNet:
    """The network of a dataset, with its accuracy on the test split."""
    images, labels = read_split(config, "train")
    module = Classifier(recipe.widths, recipe.feature_dim, datasets.info(config).num_classes)
    net = FeatureNet(config.name, images.shape[1:], module, train(module, recipe, images, labels, key))
    images, labels = read_split(config, "test")
    accuracy = float((classifier.describe(net, images).predicted == labels).mean())
    return dataclasses.replace(net, test_accuracy=accuracy)


def train(module: Classifier, recipe: Recipe, images: np.ndarray, labels: np.ndarray, key: Key) -> Params:
    """Minimizes the cross entropy of the labels.

    Args:
      images: uint8 [n h w c].
      labels: int [n].
    Returns:
      Unboxed parameters.
    """
    steps = len(images) // recipe.batch_size
    variables = jax.jit(module.init)(jax.random.fold_in(key, 0), jnp.zeros((1, *images.shape[1:])))
    params = flax.core.meta.unbox(variables)["params"]
    state = (params, _optimizer(recipe, steps).init(params))
    for epoch in range(recipe.epochs):
        epoch_key = jax.random.fold_in(key, epoch + 1)
        order = np.asarray(jax.random.permutation(epoch_key, len(images)))
        # A loop on the host: XLA's convolutions are twenty times slower inside a scan on CPUs.
        for i, rows in enumerate(order[: steps * recipe.batch_size].reshape(steps, -1)):
            step_key = jax.random.fold_in(epoch_key, i)
            state = _step(module, recipe, steps, state, images[rows], labels[rows], step_key)
    return state[0]


def _optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """AdamW whose rate falls to 0 over all epochs of `steps` steps."""
    rate = optax.cosine_decay_schedule(recipe.learning_rate, recipe.epochs * steps)
    return optax.adamw(rate, weight_decay=recipe.weight_decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _step(module: Classifier, recipe: Recipe, steps: int, state: Any, images: Array, labels: Array, key: Key) -> Any:
    params, opt_state = state
    images = _shift(classifier.to_float(images), recipe.shift, key)

    def loss(params: Params) -> Float[Array, ""]:
        _, logits = module.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, opt_state = _optimizer(recipe, steps).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _shift(images: Float[Array, "b h w c"], largest: int, key: Key) -> Float[Array, "b h w c"]:
    """Each image moved by up to `largest` pixels along both axes; what moves in is black."""
    padded = jnp.pad(images, ((0, 0), (largest, largest), (largest, largest), (0, 0)), constant_values=-1.0)
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * largest + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))(padded, corners)


if __name__ == "__main__":
    cli.main(main)
