"""MeanFlow over the pixels of 8x8 digits: one call from noise to data, trained without a teacher.

    python -m jaxar.train --config=configs/meanflow_digits.py --workdir=out/meanflow_digits

With the argument `distil` the run of configs/flow_digits.py in out/flow_digits is its teacher.

Cost: about 6 minutes on one CPU core that other work shares.
Expected: fd_digits 3.5 in 1 call (floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, "distil", taught=arg == "distil")
    if arg == "distil":
        config.method = {"name": "meanflow", "instant_share": 0.25, "teacher": {"guidance_scale": 1.5}}
    else:
        # Guidance of scale omega / (1 - kappa) = 1.5.
        config.method = {"name": "meanflow", "omega": 0.75, "kappa": 0.5}
        config.optim.learning_rate = 2e-3
        config.train.num_steps = 3000
    if arg == "smoke":
        config.train.num_steps = 2
        config.eval = {}
    return config
