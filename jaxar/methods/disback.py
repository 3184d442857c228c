"""Distribution backtracking: the student follows its teacher's own way to the student's start, backwards.

A teacher knows little of where an untrained student's samples lie. So first a copy of the teacher, the score, learns to
denoise what the student makes at the start, and the weights that it has on the way are recorded: d_0 (the teacher),
d_1, ... d_{N-1}, and d_N where it ends. Then the student is trained as in DMD, without regression,

    gradient in x = (D_S - D_k)(x_t) / mean |x - D_k|

with D_S from d_N on, and towards d_{N-1} first, then d_{N-2}, in the end d_0. The records, and a copy of that which is
the present target, are collections of the score beside its weights: N + 1 networks more, which nothing trains.

Reference: Zhang et al., Distribution Backtracking Builds A Faster Convergence Trajectory for One-step Diffusion
Distillation, 2024. The published code adds DMD2's discriminator.
"""

import dataclasses
from typing import Any

from jaxar.config import ConfigError
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Stage, Task
from jaxar.typing import Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling
_TARGET = "target"


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section.

    Attributes:
      records: how many weights are recorded, the teacher's being the first.
      record_every: steps of the score between them.
      return_every: steps of training towards each, in which the student takes a share of `generator_every`; towards the
        teacher as many as are left.
    """

    records: int = 4
    record_every: int = 100
    return_every: int = 1000

    def __post_init__(self):
        super().__post_init__()
        for name in ("records", "record_every", "return_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Record:
    """A stage's start: the score's present weights become a record."""

    name: str

    def __call__(self, state: Any) -> Any:
        return _with_collection(state, self.name, state.players["score"].params)


@dataclasses.dataclass(frozen=True)
class Aim:
    """A stage's start: a record becomes the target."""

    name: str

    def __call__(self, state: Any) -> Any:
        return _with_collection(state, _TARGET, state.players["score"].aux[self.name])


def _with_collection(state: Any, name: str, weights: Any) -> Any:
    score = state.players["score"]
    return state.replace(players={**state.players, "score": score.replace(aux={**score.aux, name: weights})})


class DisBack(distillation.ScoreDistillation):
    """Generator and score."""

    def init(self, key: Key) -> dict[str, Variables]:
        variables = super().init(key)
        copies = dict.fromkeys((*self._records, _TARGET), variables["score"]["params"])
        return {**variables, "score": {**variables["score"], **copies}}

    def stages(self) -> tuple[Stage, ...]:
        """A stage for each record, in which the score alone is trained, and for each target, from last to first."""
        config, begin = self.config, self.config.records * self.config.record_every
        there = [Stage(name, i * config.record_every, ("score",), Record(name)) for i, name in enumerate(self._records)]
        back = [
            Stage(f"to_{name}", begin + i * config.return_every, None, Aim(name))
            for i, name in enumerate(reversed(self._records))
        ]
        return (*there, *back)

    @property
    def _records(self) -> tuple[str, ...]:
        return tuple(f"record_{i}" for i in range(self.config.records))

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        target = {**variables["score"], "params": variables["score"][_TARGET]}
        real, fake = self.denoised({**variables, "teacher": target}, distillation.detached(made))
        gradient = distillation.inverse_error(made.x, real) * (fake - real)
        return {"divergence": distillation.surrogate(made.x, gradient)}


def build(config: Config, model: Model, task: Task) -> DisBack:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, one that does not denoise, or one whose students are no copies of it.
    """
    method = DisBack.of_task(config, task, "disback")
    if not denoisers.starts_as(method.student, method.teacher):
        raise ConfigError("method.name='disback' needs a teacher that its students can start as, with weights")
    return method
