"""What every method is: players (networks), a static plan of losses over them, and a sampler.

A file in this folder is a method; its name is the name used in configurations. It holds

* `Config`, `Model`, `Sampling`: frozen dataclasses for the sections `method`, `model` and `sample` of a configuration
  (`Sampling = None` for a method that does not sample, such as tokenizer training);
* `build(config, model, task) -> Method`.

Losses and samplers are pure functions of variables, batch and key. Drawing noise, times and masks from the key happens
in the method, once, so that a loss can be tested against numbers.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.tokenizers.base import ImageSpec, Tokenizer, Tokens, TokenSpec
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Params, Variables

Batch = dict[str, Array]
Cond = dict[str, Array]  # "label": Int[b], and for text-conditional models "text": Float[b t e], "text_mask": Bool[b t]


def mean_of_valid(values: Float[Array, "b"], batch: Batch) -> Float[Array, ""]:
    """Mean over the samples whose "valid" entry is not False, whatever the others are."""
    valid = batch.get("valid", jnp.ones(values.shape)).astype(bool)
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Text features that condition a model: `length` vectors of `width` values, padded on the left."""

    length: int
    width: int


@dataclasses.dataclass(frozen=True)
class Task:
    """What data, tokenizer and teacher fix for a method.

    Attributes:
      image: size and channels of the images.
      num_classes: labels are 0..num_classes-1; the null label of a class-conditional model is num_classes.
      tokens: the tokens that the model sees, None for a method over pixels.
      tokenizer: the tokenizer itself, for methods that need its functions (next-scale inputs, tokenizer training).
      text: the text features of the batches, None without text.
      teacher: the method of the run named by `teacher.from_`, or of `teacher.method`; its variables are
        `variables["teacher"]`.
    """

    image: ImageSpec
    num_classes: int
    tokens: TokenSpec | None = None
    tokenizer: Tokenizer | None = None
    text: TextSpec | None = None
    teacher: "Method | None" = None

    def discrete_tokens(self, method: str, multiscale: bool) -> TokenSpec:
        """The token spec, checked for a method over discrete raster or multi-scale tokens."""
        want = f"discrete {'multi-scale' if multiscale else 'raster'} tokens"
        if self.tokens is None:
            raise ConfigError(f"method.name={method!r} needs {want}; give tokenizer.from_, the workdir of a tokenizer")
        if self.tokens.kind != "discrete" or self.tokens.multiscale != multiscale:
            shape = "multi-scale" if self.tokens.multiscale else "raster"
            raise ConfigError(
                f"method.name={method!r} needs {want}, the tokenizer gives {self.tokens.kind} {shape} ones with "
                f"scales {self.tokens.scales}; name another tokenizer in tokenizer.from_"
            )
        return self.tokens

    def with_codes(self, method: str) -> Tokenizer:
        """The tokenizer, checked for a method that reads its codes."""
        if self.tokenizer is None:
            raise ConfigError(
                f"method.name={method!r} needs the codes of a tokenizer, and the run of teacher.from_ has none; name "
                "one in tokenizer.from_"
            )
        return self.tokenizer

    def continuous_tokens(self, method: str) -> TokenSpec:
        """The token spec, checked for a method over continuous raster tokens."""
        if self.tokens is None or self.tokens.kind != "continuous" or self.tokens.multiscale:
            given = "none" if self.tokens is None else f"{self.tokens.kind} ones with scales {self.tokens.scales}"
            raise ConfigError(
                f"method.name={method!r} needs continuous raster tokens, there are {given}; give tokenizer.from_, the "
                "workdir of a tokenizer such as kl"
            )
        return self.tokens


@dataclasses.dataclass(frozen=True)
class PlayerSpec:
    """How the trainer treats one network.

    Attributes:
      ema: keep the exponential averages that `optim.ema` lists.
      no_decay: regular expressions over parameter paths ("a/b/c") that weight decay leaves alone, besides all
        parameters of fewer than two dimensions.
      project: (params, collections, key) -> (params, collections), applied after every update.
    """

    ema: bool = True
    no_decay: tuple[str, ...] = ()
    project: Callable[[Any, dict[str, Any], Key], tuple[Any, dict[str, Any]]] | None = None


class LossAux(NamedTuple):
    """Beside the loss: scalars to log, and per player the new values of its untrained collections."""

    metrics: Metrics
    collections: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never mutated


LossFn = Callable[[dict[str, Variables], Batch, Key, Int[Array, ""]], tuple[Float[Array, ""], LossAux]]


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """One term of the plan.

    Attributes:
      fn: (variables of all players and frozen parents, batch, key, step) -> (loss, LossAux).
      updates: players that receive its gradient. Gradients stop at the *parameters* of all others, not at their
        inputs: a generator's loss flows through the critic.
      every, offset: active on steps with (step - offset) % every == 0.
    """

    name: str
    fn: LossFn
    updates: tuple[str, ...]
    every: int = 1
    offset: int = 0

    def __post_init__(self):
        if self.every < 1 or not 0 <= self.offset < self.every:
            raise ConfigError(
                f"loss {self.name!r} has every={self.every}, offset={self.offset}; need 0 <= offset < every"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training with its own losses.

    Attributes:
      start: its first step; it lasts until the next stage starts.
      losses: names of the losses that take part, None for all.
      enter: TrainState -> TrainState, applied once before the first step (a critic that starts as a copy, say).
    """

    name: str
    start: int = 0
    losses: tuple[str, ...] | None = None
    enter: Callable[[Any], Any] | None = None


class Method(abc.ABC):
    """The interface; implementations are frozen, hashable dataclasses."""

    # Losses of one step all see the parameters from before the step; by default later losses see earlier updates.
    simultaneous: ClassVar[bool] = False

    @abc.abstractmethod
    def players(self) -> dict[str, PlayerSpec]:
        """The trained networks, in order; the first is the one that `sample` and exports use."""

    @abc.abstractmethod
    def init(self, key: Key) -> dict[str, Variables]:
        """Fresh variables of every player, parameters boxed with their logical axis names."""

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """Fresh parameters of the players, changed by what parents know: a student starts as its teacher, say.

        Applied once, before anything that `init_from` names.
        """
        return params

    def frozen(self) -> dict[str, Variables]:
        """Variables that losses and figures read and nothing trains, beside those of parents: read once, from files.

        The trainer adds them to the variables of every call. They are no constants of the compiled step and are not
        part of the checkpoint.
        """
        return {}

    @abc.abstractmethod
    def losses(self) -> tuple[LossSpec, ...]:
        """The static plan of losses, in the order in which they are applied."""

    def stages(self) -> tuple[Stage, ...]:
        """The stretches of training, by start; one by default."""
        return (Stage("train"),)

    @abc.abstractmethod
    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Validation figures of one batch, without dropout.

        Figures of shape [b] are averaged over the valid examples of the split, scalars over its batches.
        """

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Key, options: Any) -> Tokens:
        """One sample per entry of `cond`.

        Args:
          variables: of the players and frozen parents.
          cond: conditions with leading axis b.
          keys: [b], one per sample; a sample depends on its own key and condition alone.
          options: an instance of the method's `Sampling`, static.
        """
        raise ConfigError(f"{type(self).__name__} trains a tokenizer and has no sampler; evaluate it instead")

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Any,
    ) -> Tokens:
        """As `sample`, for samples of which some tokens are given: inpainting, outpainting and class editing.

        Args:
          tokens: read where `known`, and unchanged there in the result.
        """
        raise ConfigError(f"{type(self).__name__} cannot keep tokens of a given image; use a masked method")

    def network_calls(self, options: Any) -> int:
        """Sequential calls of the network for one sample."""
        raise ConfigError(f"{type(self).__name__} has no sampler")

    def pairs(self, variables: dict[str, Variables], cond: Cond, keys: Keys) -> Batch:
        """What the teacher makes of noise: entries of a batch, which the losses read in place of a roll-out.

        `python -m jaxar.pairs` stores them together with the keys, from which the losses draw the same noise again.

        Args:
          variables: of frozen parents.
          cond: conditions with leading axis b.
          keys: [b], one per pair; a pair depends on its own key and condition alone.
        Returns:
          "ids" [b n] or "latents" [b n c].
        """
        raise ConfigError(f"{type(self).__name__} learns from no pairs of noise and samples")

    def pair_law(self) -> str | None:
        """The options on which `pairs` depends; None for a method without. Pairs made by other ones are refused."""
        return None

    def stage(self, step: int) -> Stage:
        """The stage that `step` belongs to."""
        return [s for s in self.stages() if s.start <= step][-1]

    def active(self, step: int) -> tuple[str, ...]:
        """Names of the losses of `step`, computed on the host: a static argument of the train step."""
        allowed = self.stage(step).losses
        return tuple(
            loss.name
            for loss in self.losses()
            if (allowed is None or loss.name in allowed) and (step - loss.offset) % loss.every == 0
        )
