"""Continuous-time consistency over the pixels of 8x8 digits, trained without a teacher.

    python -m jaxar.train --config=configs/scm_digits.py --workdir=out/scm_digits

With --config.teacher.from_=WORKDIR the flow model of configs/flow_digits.py:cosine there teaches.
From random weights 3,000 steps are not enough: the published training begins with the weights of a diffusion model.

Cost: about 8 minutes on one CPU core that other work shares.
Expected: fd_digits 54.0 in 1 call (floor 0.86), class consistency 13 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, taught=False)
    config.method = {"name": "scm", "warmup_steps": 500}
    if arg != "smoke":
        config.train.num_steps = 3000
    return config
