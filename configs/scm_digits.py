"""Continuous-time consistency distillation of the flow model of 8x8 digits on the path of constant variance.

    python -m jaxar.train --config=configs/scm_digits.py --workdir=out/scm_digits

Needs its teacher, the run of configs/flow_cosine_digits.py in out/flow_cosine_digits. The argument `untaught` trains on
data alone, from random weights, for 3,000 steps.

Cost: about 2 minutes on one CPU core.
Expected: fd_digits 2.9 in 1 call, 2.3 in 2 (teacher 2.7, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    taught = arg != "untaught"
    config = digits_student(arg, "untaught", taught=taught)
    config.method = {"name": "scm", "warmup_steps": 500}
    if taught:
        config.teacher = {"from_": "out/flow_cosine_digits"}
        config.method.teacher = {"guidance_scale": 1.5}
    else:
        config.train.num_steps = 3000
    return config
