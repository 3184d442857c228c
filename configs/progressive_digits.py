"""Progressive distillation of the flow model of 8x8 digits: guidance first, then 8, 4, 2 and 1 step.

    python -m jaxar.train --config=configs/progressive_digits.py --workdir=out/progressive_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.

Cost: about 2 minutes on one CPU core that other work shares.
Expected: fd_digits 3.6 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    config.method = {
        "name": "progressive",
        "first": 8,
        "stage_steps": 250,
        "guidance_steps": 200,
        "guidance": {"low": 1.0, "high": 3.0},
    }
    config.optim.schedule = {"name": "constant", "warmup_steps": 100}
    if arg != "smoke":
        config.train.num_steps = 1200
    config.sample = {"guidance_scale": 1.5}
    return config
