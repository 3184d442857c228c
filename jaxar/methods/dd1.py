"""Distilled Decoding 1: an autoregressive teacher becomes a student that draws all tokens in one or a few calls.

The teacher decodes as usual, but takes each token by the flow of `diffusion.codebook` in place of a random draw: it
turns the token's own noise into a code with exactly the teacher's probabilities. Noise and tokens are then paired one
to one, and a point of the path from all noise to all tokens is

    X_k = (c(q_1) .. c(q_{k-1}), eps_k .. eps_n),    q = the teacher's tokens for the noise eps

The student learns to name the end of the path from X_k, for a few k:

    loss = mean over i >= k of  -log p(q_i | X_k) + value_weight |y_i - c(q_i)|^2

with its two heads p and y. One call from X_1 gives all tokens. Another call from X_k keeps the tokens before k and puts
the same noise back for the rest.

Reference: Liu et al., Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow Matching, 2025.
Loss weights and the solver are not published; the perceptual loss of the published code is left out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.diffusion import codebook
from jaxar.methods import ar, next_scale
from jaxar.methods._shared_weights import common
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.models import one_step
from jaxar.tokenizers.base import Tokenizer, Tokens
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
    """The `sample` section. `steps`: calls of the student, at most as many as `method.starts` has entries."""

    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"sample.steps={self.steps} must be at least 1")


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
        return {"model": self.network.init(key, values, values[..., 0] > 0, jnp.zeros(1, jnp.int32))}

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """The student starts with every part that it shares with its teacher."""
        return {"model": {**params["model"], **common(frozen["teacher"]["params"], params["model"])}}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("distillation", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Cross-entropy in nats per token that is not yet decided, plus the weighted squared error of its value."""
        noise_key, start_key, dropout_key = jax.random.split(key, 3)
        labels = batch["label"]
        noise = self.noise(jax.random.split(noise_key, labels.shape[0]))
        ids = self.decide(variables, noise, labels)
        starts = jax.random.choice(start_key, jnp.array(self.config.starts), labels.shape)
        known = jnp.arange(self.num_tokens) < starts[:, None]
        nll, error, correct = self._compare(variables, noise, ids, known, labels, dropout_key)
        loss = nll + self.config.value_weight * error
        return loss, LossAux({"nll": nll, "value_error": error, "agreement": correct})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures of one call on new noise, with the labels of the batch: `nll`, `value_error` and `agreement`.

        `agreement` is the share of tokens on which the student's first head and its teacher agree.
        """
        labels = batch["label"]
        noise = self.noise(jax.random.split(key, labels.shape[0]))
        ids = self.decide(variables, noise, labels)
        nll, error, correct = self._compare(variables, noise, ids, jnp.zeros(ids.shape, bool), labels, None)
        return {"nll": nll, "value_error": error, "agreement": correct}

    def _compare(
        self,
        variables: dict[str, Variables],
        noise: Float[Array, "b n e"],
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        labels: Int[Array, "b"],
        dropout_key: Key | None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """Means over tokens that are not known: negative log-likelihood, squared error, agreement."""
        codes = self.tokenizer.codes(variables["tokenizer"])[ids]
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        logits, values = self.network.apply(
            variables["model"],
            jnp.where(known[..., None], codes, noise),
            known,
            labels,
            deterministic=not rngs,
            rngs=rngs,
        )
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        error = jnp.sum(jnp.square(values - codes), axis=-1)
        correct = jnp.argmax(logits, axis=-1) == ids
        return tuple(jnp.mean(figure, where=~known) for figure in (nll, error, correct.astype(jnp.float32)))

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

        def of_token(key: Key, position: Int[Array, ""]) -> Float[Array, "e"]:
            return jax.random.normal(jax.random.fold_in(key, position), (self.network.channels,))

        return jax.vmap(jax.vmap(of_token, (None, 0)), (0, None))(keys, jnp.arange(self.num_tokens))

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        if options.steps > len(self.config.starts):
            raise ConfigError(
                f"sample.steps={options.steps} must be at most {len(self.config.starts)}, as many as the student was "
                f"trained to start from with method.starts={self.config.starts}"
            )
        noise, codes = self.noise(keys), self.tokenizer.codes(variables["tokenizer"])
        ids = jnp.zeros(noise.shape[:2], jnp.int32)
        for start in self.config.starts[: options.steps]:
            known = jnp.broadcast_to(jnp.arange(self.num_tokens) < start, ids.shape)
            values = jnp.where(known[..., None], codes[ids], noise)
            logits = self.network.apply(variables["model"], values, known, cond["label"]).logits
            ids = jnp.where(known, ids, jnp.argmax(logits, axis=-1))
        return Tokens(ids=ids)

    def network_calls(self, options: Sampling) -> int:
        return options.steps


def build(config: Config, model: Model, task: Task) -> DD1:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, one of another kind, or starts that split a token map.
    """
    teacher, spec = task.teacher, task.tokens
    chosen = dataclasses.asdict(config.teacher)
    if isinstance(teacher, ar.AR) and teacher.network.text is None:
        net = teacher.network
        network = one_step.RasterStudent(net.sizes, net.vocab_size, net.grid, net.num_classes, channels=spec.channels)
        options, allowed = ar.Sampling(**chosen, unroll=False), range(spec.num_tokens)
    elif type(teacher) is next_scale.NextScale:  # those derived from it see and draw other things
        net = teacher.network
        network = one_step.NextScaleStudent(net.sizes, net.vocab_size, net.scale_lengths, net.channels, net.num_classes)
        lengths = spec.scale_lengths
        options, allowed = next_scale.Sampling(**chosen), [sum(lengths[:k]) for k in range(len(lengths))]
    else:
        raise ConfigError(
            "method.name='dd1' needs a class-conditional teacher of the methods ar or next_scale; name its workdir in "
            "teacher.from_"
        )
    if wrong := [start for start in config.starts if start not in allowed]:
        raise ConfigError(f"method.starts={config.starts}: {wrong[0]} is not the start of a token map; use {allowed}")
    return DD1(network, config, teacher, options, task.tokenizer)
