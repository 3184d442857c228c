"""Masked autoregression over continuous tokens: a transformer gives each token a vector, a small head draws the token.

    p(x) = prod_k prod_(i in step k) p(x_i | z_i),    z = transformer(tokens of earlier steps, class)

Training hides a random share of the tokens and lets the head denoise the hidden ones. Sampling reveals tokens in a
random order, few at first and more later by the cosine schedule; those of one step are drawn independently.

Reference: Li et al., Autoregressive Image Generation without Vector Quantization, 2024.

Golden: mar_d2, mar_diffloss, mar_schedules
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.decoding import mask_schedules, masked, reuse
from jaxar.methods import _conditions as conditions
from jaxar.methods import _continuous_law as continuous
from jaxar.methods import _token_heads as heads
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.models import mar
from jaxar.nn.layers import cast_weights
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables

Model = mar.Sizes
Sampling = continuous.Sampling
Order = Literal["random", "raster"]
_RATIO_STD = 0.25


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      head: "diffusion", or "flow" matching.
      order: in which tokens are hidden and revealed; "raster" hides the last ones, "random" any.
      min_masked: least share of tokens that training hides; the share follows a normal distribution around 1 with
        deviation 0.25, truncated to [min_masked, 1], and is drawn for each sample. (Official: for each batch.)
      repeats: times at which each token is denoised per update; they share one call of the transformer.
      label_drop: share of labels that training replaces by the null one.
    """

    head: Literal["diffusion", "flow"] = "diffusion"
    order: Order = "random"
    min_masked: float = 0.7
    repeats: int = 4
    label_drop: float = 0.1

    def __post_init__(self):
        for name in ("min_masked", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must lie in [0, 1]")
        if self.min_masked == 1:
            raise ConfigError("method.min_masked=1.0 would never show a token; use a smaller share")
        if self.repeats < 1:
            raise ConfigError(f"method.repeats={self.repeats} must be at least 1")


@dataclasses.dataclass(frozen=True)
class MAR(Method):
    """One network, one loss."""

    network: mar.MaskedAutoencoder
    grid: tuple[int, int]
    config: Config

    @property
    def head(self) -> heads.Diffusion | heads.Flow:
        return _head(self.config)

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec(no_decay=("class_embedding", "positions", "head/"))}

    def init(self, key: Key) -> dict[str, Variables]:
        tokens, cond = jnp.zeros((1, 1, self.network.channels)), {"label": jnp.zeros(1, jnp.int32)}
        return {"model": self.network.init(key, tokens, jnp.zeros((1, 1), jnp.int32), cond)}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("denoise", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean loss of the hidden tokens; samples whose "valid" entry is False do not count."""
        drop_key, hide_key, head_key, dropout_key = jax.random.split(key, 4)
        tokens = self.tokens(batch["latents"])
        cond = conditions.drop(conditions.of_batch(batch), drop_key, self.config.label_drop, self.network.num_classes)
        hidden = self.hide(hide_key, len(tokens))
        z = self.vectors(variables["model"], tokens, ~hidden, cond, self.most_known, dropout_key)
        terms = self.token_losses(variables["model"], tokens, z, *self._draw(head_key, tokens))
        valid = batch.get("valid", jnp.ones(len(tokens)))
        terms = {name: hidden_mean(values, hidden & (valid > 0)[:, None]) for name, values in terms.items()}
        return sum(terms.values()), LossAux(terms if len(terms) > 1 else {})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: the terms of the loss ("mse"; "vb" in bits per channel) over tokens hidden as in training."""
        hide_key, head_key = jax.random.split(key)
        tokens = self.tokens(batch["latents"])
        hidden = self.hide(hide_key, len(tokens))
        z = self.vectors(variables["model"], tokens, ~hidden, conditions.of_batch(batch), self.most_known)
        terms = self.token_losses(variables["model"], tokens, z, *self._draw(head_key, tokens))
        return {name: jax.vmap(hidden_mean)(values, hidden) for name, values in terms.items()}

    def tokens(self, latents: Float[Array, "b n c"]) -> Float[Array, "b m o"]:
        """The network's tokens: latents, or squares of them."""
        return mar.patchify(latents, self.grid, self.network.sizes.patch_size)

    @property
    def most_known(self) -> int:
        """Most tokens that training shows of an image."""
        return int(self.network.num_tokens * (1 - self.config.min_masked) + 1e-6)

    def hide(self, key: Key, batch: int) -> Bool[Array, "b m"]:
        """Which tokens training hides."""
        share_key, order_key = jax.random.split(key)
        lowest = (self.config.min_masked - 1) / _RATIO_STD
        share = 1 + _RATIO_STD * jax.random.truncated_normal(share_key, lowest, 0.0, (batch,))
        n = self.network.num_tokens
        count = jnp.clip(jnp.ceil(n * share).astype(jnp.int32), n - self.most_known, n)
        first = self.priority(jax.random.split(order_key, batch))
        return ~masked.largest(first, n - count)

    def priority(self, keys: Keys) -> Float[Array, "b m"]:
        """The order of each sample; tokens of high priority come first."""
        n = self.network.num_tokens
        if self.config.order == "random":
            return masked.random_priority(keys, n)
        return jnp.broadcast_to(-jnp.arange(n, dtype=jnp.float32), (len(keys), n))

    def vectors(
        self,
        model: Variables,
        tokens: Float[Array, "b m c"],
        known: Bool[Array, "b m"],
        cond: Cond,
        most: int,
        dropout_key: Key | None = None,
    ) -> Float[Array, "b m d"]:
        """The vector z of every position, given the known tokens, of which no sample has more than `most`."""
        positions, _ = masked.positions_of(known, most)
        shown = jnp.take_along_axis(tokens, positions[..., None], axis=1)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        count = jnp.sum(known, axis=1)
        return self.network.apply(model, shown, positions, cond, count, dropout_key is None, rngs=rngs)

    def token_losses(
        self,
        model: Variables,
        tokens: Float[Array, "b m c"],
        z: Float[Array, "b m d"],
        t: Array,
        noise: Float[Array, "b k m c"],
    ) -> dict[str, Float[Array, "b m"]]:
        """Loss terms of every token, means over the k times t [b k m]."""
        shape = t.shape
        x, z = (jnp.broadcast_to(y[:, None], (*shape, y.shape[-1])).reshape(-1, y.shape[-1]) for y in (tokens, z))
        terms = self.head.losses(self._denoise(model), x, z, t.reshape(-1), noise.reshape(x.shape))
        return {name: values.reshape(shape).mean(axis=1) for name, values in terms.items()}

    def _draw(self, key: Key, tokens: Array) -> tuple[Array, Array]:
        """Times and noise for `token_losses`."""
        time_key, noise_key = jax.random.split(key)
        shape = (len(tokens), self.config.repeats, tokens.shape[1])
        return self.head.draw_times(time_key, shape), jax.random.normal(noise_key, (*shape, tokens.shape[2]))

    def _denoise(self, model: Variables) -> heads.Denoise:
        return functools.partial(self.network.apply, model, method="denoise")

    def velocity(
        self, model: Variables, x: Float[Array, "r c"], z: Float[Array, "r d"], t: Float[Array, "r"]
    ) -> Float[Array, "r c"]:
        """What a head of the kind "flow" expects of noise - token, for tokens noised to the times t in [0, 1]."""
        return self.head.velocity(self._denoise(model), x, z, t)

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Key, options: Sampling) -> Tokens:
        self.head.check(options.head)
        net = self.network
        shape = (len(keys), net.num_tokens)
        state = masked.State(jnp.zeros((*shape, net.channels)), jnp.zeros(shape, bool))
        return self._reveal(variables, cond, keys, options, state, net.num_tokens)

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        """As `sample`, with known latents; those of a patch count as known if all of them are."""
        whole = jnp.all(self.tokens(known[..., None].astype(jnp.float32)) > 0, axis=-1)
        state = masked.State(self.tokens(tokens.latents), whole)
        drawn = self._reveal(variables, cond, keys, options, state, None)
        return Tokens(latents=jnp.where(known[..., None], tokens.latents, drawn.latents))

    def _reveal(
        self,
        variables: dict[str, Variables],
        cond: Cond,
        keys: Keys,
        options: Sampling,
        state: masked.State,
        hidden: int | None,
    ) -> Tokens:
        """Latents of all tokens; `hidden` is their number before the first step if all samples agree on it."""
        self.head.check(options.head)
        noise = continuous.normal_noise(self.network.channels)
        tokens = self.reveal(variables["model"], cond, keys, options, state, self.priority(keys), noise, hidden)
        return Tokens(latents=mar.unpatchify(tokens, self.grid, self.network.sizes.patch_size))

    def reveal(
        self,
        model: Variables,
        cond: Cond,
        keys: Keys,
        options: Sampling,
        state: masked.State,
        priority: Float[Array, "b m"],
        noise: continuous.TokenNoise,
        hidden: int | None,
    ) -> Float[Array, "b m c"]:
        """All tokens, drawn in the order of `priority` from the given noise; see `_reveal`."""
        law, choose, segments = self.rules(model, cond, options, state.known, priority, noise, hidden)
        if options.refresh_every is not None:
            batch = len(keys) * (1 if options.guidance_scale == 1 else 2)
            state = state._replace(extra=reuse.begin(self.network.init_caches(batch), batch, self.network.num_tokens))
        return masked.decode(law, state, keys, segments, choose).tokens

    def rules(
        self,
        model: Variables,
        cond: Cond,
        options: Sampling,
        known: Bool[Array, "b m"],
        priority: Float[Array, "b m"],
        noise: continuous.TokenNoise,
        hidden: int | None,
    ) -> tuple[masked.Law, masked.Choose, tuple[mask_schedules.Segment, ...]]:
        """What `reveal` runs, from the tokens that are known before the first step."""
        net = self.network
        model = cast_weights(model, net.sizes.dtype)
        counts = mask_schedules.cosine_counts(options.num_steps, net.num_tokens)
        choose = masked.next_in_order(priority, masked.by_table(counts, known))
        guided = options.guidance_scale != 1
        cond = conditions.doubled(cond, net.num_classes) if guided else cond

        every = options.refresh_every
        vectors = self._all_vectors(model, cond) if every is None else self._due_vectors(model, cond, every)
        law = continuous.law(vectors, self.head, self._denoise(model), options, noise)
        return law, choose, mask_schedules.segments(counts, options.segments, hidden)

    def _all_vectors(self, model: Variables, cond: Cond) -> continuous.Vectors:
        def vectors(
            state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
        ) -> tuple[Float[Array, "b m d"], None]:
            return self.vectors(model, state.tokens, state.known, cond, segment.known), None

        return vectors

    def _due_vectors(self, model: Variables, cond: Cond, refresh_every: int) -> continuous.Vectors:
        """With reuse of keys and values; `State.extra` is the memory of `decoding.reuse`."""

        def shown(state: masked.State, which: Bool[Array, "b m"], most: int) -> tuple[Array, Array, Array]:
            positions, _ = masked.positions_of(which, most)
            return jnp.take_along_axis(state.tokens, positions[..., None], axis=1), positions, jnp.sum(which, axis=1)

        def whole(state: masked.State, segment: mask_schedules.Segment) -> tuple[Float[Array, "b m d"], mar.Caches]:
            tokens, positions, count = shown(state, state.known, segment.known)
            return self.network.apply(model, tokens, positions, cond, count, state.extra.cache, method="refresh")

        def part(state: masked.State, segment: mask_schedules.Segment) -> tuple[Float[Array, "b m d"], mar.Caches]:
            fresh = shown(state, state.known & ~state.extra.settled, segment.fresh)
            kv_len = self.network.sizes.buffer_size + segment.known
            args = *fresh, *reuse.due(state, segment), state.extra.cache
            return self.network.apply(model, *args, kv_len, method="extend")

        return reuse.alternating(whole, part, refresh_every)

    def network_calls(self, options: Sampling) -> int:
        """Calls of the transformer; each is followed by `options.head` calls of the head, which is small."""
        return options.num_steps


def hidden_mean(values: Float[Array, "*b m"], hidden: Bool[Array, "*b m"]) -> Float[Array, ""]:
    """Mean over hidden tokens, 0 if there are none."""
    return jnp.sum(values * hidden) / jnp.maximum(jnp.sum(hidden), 1)


def _head(config: Config) -> heads.Diffusion | heads.Flow:
    return heads.Diffusion() if config.head == "diffusion" else heads.Flow()


def build(config: Config, model: Model, task: Task) -> MAR:
    """The method for continuous raster tokens, conditional on the class.

    Raises:
      ConfigError: other tokens, or a grid that the patches do not divide.
    """
    tokens, patch = task.continuous_tokens("mar"), model.patch_size
    if tokens.grid[0] % patch or tokens.grid[1] % patch:
        raise ConfigError(f"model.patch_size={patch} does not divide the token grid {tokens.grid}; use a divisor")
    channels = tokens.channels * patch**2
    network = mar.MaskedAutoencoder(
        model, tokens.num_tokens // patch**2, channels, task.num_classes, _head(config).output_channels(channels)
    )
    return MAR(network, tokens.grid, config)
