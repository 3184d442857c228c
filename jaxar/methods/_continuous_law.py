"""Draws continuous tokens in masked decoding: vectors of the chosen positions, guidance, noise, the head."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.decoding import masked, reuse
from jaxar.decoding.mask_schedules import Segment
from jaxar.diffusion import ddpm
from jaxar.methods import _token_heads as heads
from jaxar.typing import Array, Bool, Float, Int, Key, Keys


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section.

    Attributes:
      num_steps: calls of the transformer; as many as tokens reveal one after another.
      head: steps of the head after each.
      guidance_scale: s in `uncond + s (cond - uncond)`, on what the head predicts; 1 computes no null half.
      guidance_schedule: "linear" in the share of tokens that are revealed, or "constant".
      segments: pieces of the loop; the encoder of each reads as many tokens as that piece has revealed.
      refresh_every: reuse of keys and values, see `decoding.reuse`: a step encodes only the tokens of the step before,
        decodes those and the masked ones, and every so many steps all of them. None, and 1, are exact.
    """

    num_steps: int = 64
    head: heads.Steps = heads.Steps()  # noqa: RUF009 - frozen
    guidance_scale: float = 1.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    segments: int = 4
    refresh_every: int | None = None

    def __post_init__(self):
        for name in ("num_steps", "segments"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sample.{name}={getattr(self, name)} must be at least 1")
        reuse.check(self.refresh_every)


# (state, step, segment) -> (z [b m d], new `State.extra`); with guidance over a doubled batch, null samples last.
Vectors = Callable[[masked.State, Int[Array, ""], Segment], tuple[Float[Array, "b m d"], Any]]


class TokenNoise(Protocol):
    """(keys [b] of a step, step, positions [b m]) -> starting noise [b m c], and a function for more of it.

    The function's argument is the head's step, from 0, the noisiest.
    """

    def __call__(
        self, keys: Keys, step: Int[Array, ""], positions: Int[Array, "b m"]
    ) -> tuple[Float[Array, "b m c"], ddpm.Noise]: ...


def law(
    vectors: Vectors,
    head: heads.Diffusion | heads.Flow,
    denoise: heads.Denoise,
    options: Sampling,
    noise: TokenNoise,
) -> masked.Law:
    """The law that draws the chosen tokens of a step independently of one another, given the known ones."""
    guided = options.guidance_scale != 1
    both = _twice if guided else lambda x: x

    def draw(
        state: masked.State, chosen: Bool[Array, "b m"], step: Int[Array, ""], keys: Keys, segment: Segment
    ) -> masked.Drawn:
        z, extra = vectors(masked.State(both(state.tokens), both(state.known), state.extra), step, segment)
        positions, _ = masked.positions_of(chosen, segment.new)
        z = jnp.take_along_axis(z, both(positions)[..., None], axis=1)
        start, more = noise(keys, step, positions)
        rows = (-1, start.shape[-1])
        scale = None
        if guided:
            scale = guidance_scales(options, jnp.sum(~state.known & ~chosen, axis=1), chosen.shape[1])
            scale = jnp.repeat(scale, positions.shape[1])[:, None]
        drawn = head.sample(
            denoise,
            z.reshape(-1, z.shape[-1]),
            start.reshape(rows),
            lambda index: more(index).reshape(rows),
            scale,
            options.head,
            step,
            options.num_steps,
        )
        put = jax.vmap(lambda row, at, new: row.at[at].set(new))
        return masked.Drawn(put(state.tokens, positions, drawn.reshape(start.shape)), extra=extra)

    return draw


def guidance_scales(options: Sampling, hidden: Int[Array, "*b"], num_tokens: int) -> Float[Array, "*b"]:
    """The scale of a step after which `hidden` tokens are left; "linear": 1 + (s - 1) (n - max(1, hidden)) / n.

    The maximum is the published code's: its last step has the scale of the one that would leave a single token.
    """
    if options.guidance_schedule == "constant":
        return jnp.full(hidden.shape, options.guidance_scale)
    revealed = (num_tokens - jnp.maximum(hidden, 1)) / num_tokens
    return 1 + (options.guidance_scale - 1) * revealed


def normal_noise(channels: int) -> TokenNoise:
    """Normal noise from a key per token, whatever else is drawn in the step."""

    def noise(
        keys: Keys, step: Int[Array, ""], positions: Int[Array, "b m"]
    ) -> tuple[Float[Array, "b m c"], ddpm.Noise]:
        token_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, positions)

        def draw(number: Int[Array, ""] | int) -> Float[Array, "b m c"]:
            def of_token(key: Key) -> Array:
                return jax.random.normal(jax.random.fold_in(key, number), (channels,))

            return jax.vmap(jax.vmap(of_token))(token_keys)

        return draw(0), lambda index: draw(index + 1)

    return noise


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])
