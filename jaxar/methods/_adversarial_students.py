"""Consistency students with a discriminator, which tells where they landed from where they should have.

    discriminator: max(0, 1 - l(wanted)) + max(0, 1 + l(found)),    student: its own loss - weight l(found)

Both maps are noised further first: where they landed their laws hardly overlap. l is a small head on features that the
frozen teacher has of them at the noisier time.

Reference: Wang et al., Phased Consistency Model, 2024, Sec. 3.3; Liu et al., SCott, 2024. Difference: the second adds
weights of low rank to the teacher's features, which are left as they are here.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _conditions as conditions
from jaxar.methods import _landing as landing
from jaxar.methods import _students as students
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, mean_of_valid
from jaxar.models.feature_discriminator import FeatureDiscriminator
from jaxar.typing import Array, Float, Int, Key, Variables


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """The `method.adversarial` section.

    Attributes:
      weight: of the student's term; with 0 there is no discriminator.
      width: of the discriminator's layers.
    """

    weight: float = 0.0
    width: int = 256

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"method.adversarial.weight={self.weight} must be at least 0, which leaves it out")
        if self.width < 1:
            raise ConfigError(f"method.adversarial.width={self.width} must be at least 1")


class Contest(NamedTuple):
    """What the discriminator compares: maps at times t. Gradients flow back through `found`."""

    found: Float[Array, "b h w c"]
    wanted: Float[Array, "b h w c"]
    t: Float[Array, "b"]


class AdversarialStudent(students.Student):
    """A student whose `config` has `adversarial` and `huber`."""

    @abc.abstractmethod
    def landings(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key
    ) -> landing.Landings:
        """Calls from neighbours on the way from data x to noise."""

    @abc.abstractmethod
    def contest(self, landed: landing.Landings, x: Float[Array, "b h w c"], key: Key) -> Contest:
        """What is compared of calls that landed, made for data x."""

    @property
    def opposed(self) -> bool:
        """Whether there is a discriminator."""
        return self.config.adversarial.weight > 0

    @property
    def head(self) -> FeatureDiscriminator:
        return FeatureDiscriminator(self.config.adversarial.width)

    def players(self) -> dict[str, PlayerSpec]:
        return super().players() | ({"discriminator": PlayerSpec(ema=False)} if self.opposed else {})

    def init(self, key: Key) -> dict[str, Variables]:
        if not self.opposed:
            return super().init(key)
        key, teacher_key, head_key = jax.random.split(key, 3)
        x, t, label = jnp.zeros((1, *self.canvas.shape)), jnp.ones(1), jnp.zeros(1, jnp.int32)

        def features(key: Key) -> Array:
            return self.teacher.features(self.teacher.init(key)["model"], x, t, label)

        shapes = jax.eval_shape(features, teacher_key)
        return {**super().init(key), "discriminator": self.head.init(head_key, jnp.zeros(shapes.shape, shapes.dtype))}

    def losses(self) -> tuple[LossSpec, ...]:
        if not self.opposed:
            return super().losses()
        return (*super().losses(), LossSpec("discriminator", self.discriminator_loss, ("discriminator",)))

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        return landing.disagreement(self.landings(variables, x, cond, key), self.config.huber)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean of `errors`, and of the adversarial term."""
        if not self.opposed:
            return super().loss(variables, batch, key, step)
        landed, contest, labels = self._play(variables, batch, key)
        errors = mean_of_valid(landing.disagreement(landed, self.config.huber), batch)
        term = -self.config.adversarial.weight * mean_of_valid(
            self.logits(variables, contest.found, contest.t, labels), batch
        )
        return errors + term, LossAux({"error": errors, "adversarial": term})

    def discriminator_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """The hinge loss above; samples whose "valid" entry is False do not count."""
        _, (found, wanted, t), labels = jax.lax.stop_gradient(self._play(variables, batch, key))
        on_found, on_wanted = (self.logits(variables, x, t, labels) for x in (found, wanted))
        return mean_of_valid(jax.nn.relu(1 - on_wanted) + jax.nn.relu(1 + on_found), batch), LossAux({})

    def _play(
        self, variables: dict[str, Variables], batch: Batch, key: Key
    ) -> tuple[landing.Landings, Contest, Int[Array, "b"]]:
        key, contest_key = jax.random.split(key)
        x, cond = self.canvas.read(batch), conditions.of_batch(batch)
        landed = self.landings(variables, x, cond, key)
        return landed, self.contest(landed, x, contest_key), cond["label"]

    def logits(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b"]:
        """l of maps at times t."""
        return self.head.apply(variables["discriminator"], self.teacher.features(variables["teacher"], x, t, labels))
