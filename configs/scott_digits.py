"""Stochastic consistency distillation of the flow model of 8x8 digits, for guidance scales from 1 to 3.

    python -m jaxar.train --config=configs/scott_digits.py --workdir=out/scott_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. The argument `adversarial` adds a
discriminator: for one seed and 360 samples fd_digits was 3.0 without it, 2.9 with a weight of 0.02 and 3.5 with 0.1.

Cost: about 3 minutes on one CPU core that other work shares.
Expected: fd_digits 2.7 in 2 calls (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, "adversarial")
    config.method = {"name": "scott", "levels": 12, "guidance": {"low": 1.0, "high": 3.0}}
    config.sample = {"num_steps": 2, "guidance_scale": 1.5}
    if arg in ("adversarial", "smoke"):
        config.method.adversarial = {"weight": 0.02}
    if arg == "smoke":
        config.method.update({"levels": 2, "substeps": 1})
    return config
