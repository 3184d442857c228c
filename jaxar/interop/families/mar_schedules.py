"""MAR's schedules: tokens and guidance of each step, and the tables of its diffusion process. There is no network.

Reference: https://github.com/LTH14/mar, models/mar.py and diffusion/.
"""

import numpy as np

from jaxar.decoding import mask_schedules
from jaxar.interop.base import Models, Official, Parts
from jaxar.interop.families import _replay
from jaxar.methods import _continuous_law as continuous
from jaxar.typing import Variables

NETWORKS = ()
PUBLISHED = {}


def describe(models: Models) -> Official:
    return Official(None, ())


def masking_schedule(
    official: Official,
    variables: dict[str, Variables],
    seq_len: int,
    num_iter: int,
    cfg_scale: float,
    cfg_schedule: str,
) -> Parts:
    left = mask_schedules.cosine_counts(num_iter, seq_len)[:, -1]
    options = continuous.Sampling(guidance_scale=cfg_scale, guidance_schedule=cfg_schedule)
    return {
        "counts": -np.diff(left, prepend=seq_len),
        "cfg_per_iter": continuous.guidance_scales(options, np.asarray(left), seq_len),
    }


def diffusion_tables(official: Official, variables: dict[str, Variables], **process) -> Parts:
    return _replay.process(**process).tables._asdict()


CALLS = {"masking_schedule": masking_schedule, "diffusion_tables": diffusion_tables}
