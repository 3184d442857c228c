"""Distilled Decoding 1: an autoregressive teacher becomes a student that draws all tokens in one or a few calls.

The teacher decodes as usual, but takes each token by the flow of `diffusion.codebook` in place of a random draw: it
turns the token's own noise into a code with exactly the teacher's probabilities. Noise and tokens are then paired one
to one, and a point of the path from all noise to all tokens is

    X_k = (c(q_1) .. c(q_{k-1}), eps_k .. eps_n),    q = the teacher's tokens for the noise eps

`python -m jaxar.pairs` stores such pairs once for all steps. Without a store every step rolls the teacher out anew. The
student learns to name the end of the path from X_k, for a few k:

    loss = mean over i >= k of  -log p(q_i | X_k) + value_weight |y_i - c(q_i)|^2

with its two heads p and y. One call from X_1 gives all tokens. Another call from X_k keeps the tokens before k, or lets
the teacher draw the last of them anew, and puts the same noise back for the rest. What the last call decides may stay
the values y.

Reference: Liu et al., Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow Matching, 2025.
Loss weights and the solver are not published; the perceptual loss of the published code is left out. The logits have a
term of the token's own noise (`models.one_step.Closeness`) that is not published.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import masked
from jaxar.diffusion import codebook
from jaxar.methods import ar, next_scale
from jaxar.methods._shared_weights import common
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.models import one_step
from jaxar.tokenizers.base import Tokenizer, Tokens, TokenSpec
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Params, Variables


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: empty, the student has its teacher's sizes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      starts: numbers of tokens that are already decided where the student's calls start; the first must be 0. As many
        calls as there are starts can be made when sampling.
      value_weight: of the squared error of the second head, summed over channels.
      flow_steps: of Heun's method from noise to a code.
      teacher: how the teacher decodes; guidance and filters are part of the law that the student learns.
    """

    starts: tuple[int, ...] = (0,)
    value_weight: float = 1.0
    flow_steps: int = 25
    teacher: lg.Sampling = lg.Sampling()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if not self.starts or self.starts[0] != 0 or list(self.starts) != sorted(set(self.starts)):
            raise ConfigError(f"method.starts={self.starts} must rise from 0, as in (0, 55)")
        if self.value_weight < 0:
            raise ConfigError(f"method.value_weight={self.value_weight} must be at least 0")
        if self.flow_steps < 1:
            raise ConfigError(f"method.flow_steps={self.flow_steps} must be at least 1")
        if self.teacher.greedy:
            raise ConfigError("method.teacher.greedy=True leaves nothing to distil; use a temperature")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section.

    Attributes:
      steps: calls of the student, at most as many as `method.starts` has entries.
      temperature: of a draw from the first head. 0 takes its most likely code, as published; a student that is not sure
        of all tokens then repeats the most common images, and a little more gives some of their variety back.
      split: tokens from this one on are values of the second head, not codes; None for codes alone.
      resample: (n, m): before the call that starts at m the teacher draws tokens n..m-1 anew; None for never.
    """

    steps: int = 1
    temperature: float = 0.0
    split: int | None = None
    resample: tuple[int, int] | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"sample.steps={self.steps} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(
                f"sample.temperature={self.temperature} must be at least 0, which takes the likeliest code"
            )


@dataclasses.dataclass(frozen=True)
class DD1(Method):
    """One student; its teacher and the tokenizer are frozen."""

    network: one_step.RasterStudent | one_step.NextScaleStudent
    config: Config
    teacher: ar.AR | next_scale.NextScale
    options: ar.Sampling | next_scale.Sampling
    tokenizer: Tokenizer

    @property
    def num_tokens(self) -> int:
        return self.tokenizer.spec.num_tokens

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": next(iter(self.teacher.players().values()))}

    def init(self, key: Key) -> dict[str, Variables]:
        values = jnp.zeros((1, self.num_tokens, self.network.channels))
        codes = jnp.zeros((self.tokenizer.spec.vocab_size, self.network.channels))
        return {"model": self.network.init(key, values, values[..., 0] > 0, jnp.zeros(1, jnp.int32), codes)}

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """The student starts with every part that it shares with its teacher."""
        return {"model": {**params["model"], **common(frozen["teacher"]["params"], params["model"])}}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("distillation", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Cross-entropy in nats per token that is not yet decided, plus the weighted squared error of its value."""
        pair_key, start_key, dropout_key = jax.random.split(key, 3)
        noise, ids = self.pair(variables, batch, pair_key)
        starts = jax.random.choice(start_key, jnp.array(self.config.starts), (len(ids),))
        known = jnp.arange(self.num_tokens) < starts[:, None]
        figures = self._compare(variables, noise, ids, known, batch["label"], dropout_key)
        means = {name: jnp.mean(figure, where=~known) for name, figure in figures.items()}
        return means["nll"] + self.config.value_weight * means["value_error"], LossAux(means)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] of one call: `nll`, `value_error` and `agreement`.

        `agreement` is the share of tokens on which the student's first head and its teacher agree.
        """
        noise, ids = self.pair(variables, batch, key)
        figures = self._compare(variables, noise, ids, jnp.zeros(ids.shape, bool), batch["label"], None)
        return {name: jnp.mean(figure, axis=1) for name, figure in figures.items()}

    def pair(
        self, variables: dict[str, Variables], batch: Batch, key: Key
    ) -> tuple[Float[Array, "b n e"], Int[Array, "b n"]]:
        """Noise and the teacher's tokens for it: those of a batch of stored pairs, or new ones for its labels."""
        if "noise_key" in batch:
            return self.noise(jax.random.wrap_key_data(batch["noise_key"])), batch["ids"]
        noise = self.noise(jax.random.split(key, len(batch["label"])))
        return noise, self.decide(variables, noise, batch["label"])

    def pairs(self, variables: dict[str, Variables], cond: Cond, keys: Keys) -> Batch:
        return {"ids": self.decide(variables, self.noise(keys), cond["label"])}

    def pair_law(self) -> str:
        return f"{self.config.teacher}, flow_steps={self.config.flow_steps}"

    def _compare(
        self,
        variables: dict[str, Variables],
        noise: Float[Array, "b n e"],
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        labels: Int[Array, "b"],
        dropout_key: Key | None,
    ) -> dict[str, Float[Array, "b n"]]:
        """Of each token: negative log-likelihood, squared error of the value, and whether the first head is right."""
        codes = self.tokenizer.codes(variables["tokenizer"])
        ends = codes[ids]
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        logits, values = self.network.apply(
            variables["model"],
            jnp.where(known[..., None], ends, noise),
            known,
            labels,
            codes,
            deterministic=not rngs,
            rngs=rngs,
        )
        return {
            "nll": optax.softmax_cross_entropy_with_integer_labels(logits, ids),
            "value_error": jnp.sum(jnp.square(values - ends), axis=-1),
            "agreement": (jnp.argmax(logits, axis=-1) == ids).astype(jnp.float32),
        }

    def decide(
        self, variables: dict[str, Variables], noise: Float[Array, "b n e"], labels: Int[Array, "b"]
    ) -> Int[Array, "b n"]:
        """The tokens that the teacher makes of noise: token i depends on the noise up to i alone."""
        codes = self.tokenizer.codes(variables["tokenizer"])

        def draw(logits: Float[Array, "b t v"], keys: None, positions: Int[Array, "t"]) -> Int[Array, "b t"]:
            log_probs = lg.filtered(logits, self.options)
            return codebook.codes_of_noise(noise[:, positions], codes, log_probs, self.config.flow_steps)

        teacher = {"model": variables["teacher"], "tokenizer": variables["tokenizer"]}
        return jax.lax.stop_gradient(self.teacher.roll_out(teacher, {"label": labels}, None, self.options, draw))

    def noise(self, keys: Keys) -> Float[Array, "b n e"]:
        """The noise of every token, each from a key of its own."""

        def of_token(key: Key) -> Float[Array, "e"]:
            return jax.random.normal(key, (self.network.channels,))

        return jax.vmap(jax.vmap(of_token))(masked.fold_positions(keys, self.num_tokens))

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        self._check(options)
        noise, codes = self.noise(keys), self.tokenizer.codes(variables["tokenizer"])
        first, stop = options.resample or (None, None)
        ids = jnp.zeros(noise.shape[:2], jnp.int32)
        for start in self.config.starts[: options.steps]:
            if start == stop:
                ids = self._drawn_anew(variables, ids, cond, keys, first, stop)
            known = jnp.broadcast_to(jnp.arange(self.num_tokens) < start, ids.shape)
            inputs = jnp.where(known[..., None], codes[ids], noise)
            logits, values = self.network.apply(variables["model"], inputs, known, cond["label"], codes)
            ids = jnp.where(known, ids, _chosen(logits, _apart(keys, self.num_tokens + 1 + start), options.temperature))
        if options.split is None:
            return Tokens(ids=ids)
        tail = jnp.arange(self.num_tokens)[:, None] >= options.split
        return Tokens(latents=jnp.where(tail, values, codes[ids]))

    def _drawn_anew(
        self,
        variables: dict[str, Variables],
        ids: Int[Array, "b n"],
        cond: Cond,
        keys: Keys,
        first: int,
        stop: int,
    ) -> Int[Array, "b n"]:
        """The tokens, of which the teacher has drawn those in [first, stop) by its ordinary sampler."""
        apart = _apart(keys, self.num_tokens)
        draw = functools.partial(lg.draw, options=self.options)
        teacher = {"model": variables["teacher"], "tokenizer": variables["tokenizer"]}
        given = ids[:, :first] if first else None
        drawn = self.teacher.roll_out(teacher, cond, apart, self.options, draw, given, stop)
        return jnp.concatenate([drawn, ids[:, stop:]], axis=1)

    def network_calls(self, options: Sampling) -> int:
        self._check(options)
        return options.steps + (self.teacher.roll_out_calls(*options.resample) if options.resample else 0)

    def _check(self, options: Sampling) -> None:
        starts = self.config.starts[: options.steps]
        if options.steps > len(starts):
            raise ConfigError(
                f"sample.steps={options.steps} must be at most {len(starts)}, as many as the student was "
                f"trained to start from with method.starts={self.config.starts}"
            )
        if options.split is not None and not starts[-1] <= options.split < self.num_tokens:
            raise ConfigError(
                f"sample.split={options.split} must lie in {starts[-1]}..{self.num_tokens - 1}, what the last call "
                "decides; None leaves all tokens codes"
            )
        if options.resample is None:
            return
        first, stop = options.resample
        if stop not in starts[1:] or first not in _boundaries(self.tokenizer.spec) or first >= stop:
            raise ConfigError(
                f"sample.resample={options.resample} must end at the start of a later call, one of {starts[1:]} with "
                f"sample.steps={options.steps}, and begin before it at the start of a token map"
            )


def _chosen(logits: Float[Array, "b n v"], keys: Keys, temperature: float) -> Int[Array, "b n"]:
    options = lg.Sampling(temperature=temperature or 1.0, greedy=temperature == 0)
    return lg.draw(logits, keys, jnp.arange(logits.shape[1]), options)


def _apart(keys: Keys, number: int) -> Keys:
    """Keys for what is drawn beside the noise, which has the keys themselves, folded with numbers of tokens."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _boundaries(spec: TokenSpec) -> list[int]:
    """Numbers of tokens after which the next ones can be decided: the starts of token maps, of all raster tokens."""
    lengths = spec.scale_lengths if spec.multiscale else (1,) * spec.num_tokens
    return [sum(lengths[:k]) for k in range(len(lengths))]


def build(config: Config, model: Model, task: Task) -> DD1:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, one of another kind, or starts that split a token map.
    """
    teacher, spec = task.teacher, task.tokens
    chosen = dataclasses.asdict(config.teacher)
    if isinstance(teacher, ar.AR) and teacher.network.text is None:
        net = teacher.network
        sizes = dataclasses.replace(net.sizes, dropout=0.0, drop_path=0.0)  # pairs are exact and as many as one likes
        network = one_step.RasterStudent(sizes, net.vocab_size, net.grid, net.num_classes, channels=spec.channels)
        # One piece, one layer: every other would compile the flow, or the layers, once more.
        options = ar.Sampling(**chosen, segments=1, unroll=False)
    elif type(teacher) is next_scale.NextScale:  # those derived from it see and draw other things
        net = teacher.network
        sizes = dataclasses.replace(net.sizes, dropout=0.0, drop_path=0.0)
        network = one_step.NextScaleStudent(sizes, net.vocab_size, net.scale_lengths, net.channels, net.num_classes)
        options = next_scale.Sampling(**chosen)
    else:
        raise ConfigError(
            "method.name='dd1' needs a class-conditional teacher of the methods ar or next_scale; name its workdir in "
            "teacher.from_"
        )
    allowed = _boundaries(spec)
    if wrong := [start for start in config.starts if start not in allowed]:
        raise ConfigError(f"method.starts={config.starts}: {wrong[0]} is not the start of a token map; use {allowed}")
    return DD1(network, config, teacher, options, task.with_codes("dd1"))
