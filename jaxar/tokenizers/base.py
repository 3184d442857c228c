"""What every tokenizer is: image -> tokens -> image, described by a static `TokenSpec`.

A tokenizer is a frozen dataclass of pure functions over its variables. A file in this folder is a tokenizer: it has a
frozen `Config` dataclass and `build(config, image) -> Tokenizer`; the file's name is the name used in configurations.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax

from jaxar import lookup
from jaxar.config import ConfigError, parse
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Square images: `size` pixels a side, `channels` values in [-1, 1]."""

    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """Static description of a token sequence; models are built from it, never from a tokenizer.

    Attributes:
      kind: "discrete" (ids below `vocab_size`) or "continuous" (vectors).
      scales: (height, width) of each token map, coarse to fine; a raster tokenizer has one. Tokens are the maps in this
        order, each row by row.
      channels: width of a code or latent vector.
      vocab_size: number of codes, None for continuous tokens.
    """

    kind: Literal["discrete", "continuous"]
    scales: tuple[tuple[int, int], ...]
    channels: int
    vocab_size: int | None = None

    def __post_init__(self):
        if (self.kind == "discrete") != (self.vocab_size is not None):
            raise ConfigError(f"vocab_size={self.vocab_size} with kind={self.kind!r}; discrete tokens alone have one")
        areas = [h * w for h, w in self.scales]
        if not areas or areas != sorted(areas):
            raise ConfigError(f"scales={self.scales} must be given coarse to fine, at least one")

    @property
    def grid(self) -> tuple[int, int]:
        return self.scales[-1]

    @property
    def scale_lengths(self) -> tuple[int, ...]:
        return tuple(h * w for h, w in self.scales)

    @property
    def num_tokens(self) -> int:
        return sum(self.scale_lengths)

    @property
    def multiscale(self) -> bool:
        return len(self.scales) > 1


class Tokens(NamedTuple):
    """A batch of token sequences: `ids` [b n] for discrete, `latents` [b n c] for continuous tokens.

    `latents` of a discrete tokenizer are values in the space of its codes, for decoding alone.
    """

    ids: Int[Array, "b n"] | None = None
    latents: Float[Array, "b n c"] | None = None


class Reconstruction(NamedTuple):
    """What tokenizer training needs from one pass.

    Attributes:
      images: [b h w c], differentiable through the quantizer by the straight-through estimator; not clipped.
      loss: the tokenizer's own terms (commitment, entropy, KL), already weighted; 0 if it has none.
      metrics: scalars to log (code use and perplexity per scale, each term of `loss`).
      collections: new values of the untrained collections (statistics of code use), {} if it has none.
    """

    images: Float[Array, "b h w c"]
    loss: Float[Array, ""]
    metrics: Metrics
    collections: dict[str, Any]


class Tokenizer(Protocol):
    """The interface; implementations are frozen, hashable dataclasses."""

    image: ImageSpec
    spec: TokenSpec

    def init(self, key: Key) -> Variables:
        """Fresh variables, parameters boxed with their logical axis names."""

    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None) -> Tokens:
        """Tokens of images in [-1, 1]; `key=None` means the mean of a stochastic encoder."""

    def decode(self, variables: Variables, tokens: Tokens) -> Float[Array, "b h w c"]:
        """Images clipped to [-1, 1]; a discrete tokenizer reads `latents`, if there are any, in place of codes."""

    def codes(self, variables: Variables) -> Float[Array, "v c"]:
        """The vectors that the decoder reads for the ids of a discrete tokenizer."""

    def reconstruct(
        self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None, train: bool
    ) -> Reconstruction:
        """One training pass: encode, quantize, decode, with the tokenizer's own loss terms."""

    def project(self, params: Any, collections: dict[str, Any], key: Key) -> tuple[Any, dict[str, Any]]:
        """Applied after every update of the parameters: the guard against dead codes lives here."""


class MultiscaleTokenizer(Tokenizer, Protocol):
    """A tokenizer whose tokens are residual maps, coarse to fine, summed into one feature map `f_hat` (VAR)."""

    def teacher_input(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "b m c"]:
        """Inputs of scales 2..K for given ids: cumulative features, area-resized to each next scale.

        m = n - scale_lengths[0].
        """

    def next_input(
        self, variables: Variables, scale: int, f_hat: Float[Array, "b h w c"], ids: Int[Array, "b s"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b m c"] | None]:
        """Adds the map of `scale` (0-based) to `f_hat`; returns the sum and the next input (None at the end)."""

    def own_features(self, variables: Variables, scale: int, ids: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """What the map of `scale` (0-based) alone adds to `f_hat`, area-resized to its own size."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns image batches into token batches inside the train step; batches that hold tokens pass unchanged.

    The tokenizer's variables come from `frozen["tokenizer"]`: they are arguments of the step, never constants in it.
    """

    tokenizer: Tokenizer
    PLAYER: ClassVar[str] = "tokenizer"

    def __call__(self, frozen: dict[str, Variables], batch: dict[str, Array], key: Key | None) -> dict[str, Array]:
        if "image" not in batch:
            return batch
        images = batch["image"]
        tokens = jax.lax.stop_gradient(self.tokenizer.encode(frozen[self.PLAYER], images, key))
        name = "ids" if self.tokenizer.spec.kind == "discrete" else "latents"
        return {**batch, name: getattr(tokens, name)}


def build(name: str, values: dict[str, Any], image: ImageSpec, path: str = "tokenizer") -> Tokenizer:
    """The tokenizer called `name` with the options `values`.

    Raises:
      ConfigError: unknown name or key, ill-typed value, or an image size that the tokenizer's stride does not divide.
    """
    module = lookup.module("jaxar.tokenizers", name, "tokenizer")
    return module.build(parse(module.Config, values, path), image)
