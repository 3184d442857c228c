"""Rectified flow for a smaller network from pairs of the flow model of 8x8 digits: 0.4M parameters.

    python -m jaxar.train --config=configs/slimflow_digits.py --workdir=out/slimflow_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. It is the teacher of slimflow_one_step_digits.

Cost: about 21 minutes on one CPU core that other work shares.
Expected: fd_digits 4.5 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    config.model = {"num_layers": 2, "width": 96, "num_heads": 4, "patch_size": 2}
    config.method = {"name": "slimflow", "solver_steps": 4, "anneal_steps": 1000, "teacher": {"guidance_scale": 1.5}}
    config.optim.learning_rate = 2e-3
    config.train.num_steps = 3000  # from random weights
    if arg == "smoke":
        config.model.update({"width": 32, "num_heads": 2})
        config.method.solver_steps = 2
        config.train.num_steps = 2
    return config
