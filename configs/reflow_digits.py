"""Rectified flow from pairs of the flow model of 8x8 digits.

    python -m jaxar.train --config=configs/reflow_digits.py --workdir=out/reflow_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. It is the teacher of instaflow_digits.

Cost: about 8 minutes on one CPU core that other work shares.
Expected: fd_digits 3.0 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    solver_steps = 2 if arg == "smoke" else 8
    config.method = {"name": "reflow", "solver_steps": solver_steps, "teacher": {"guidance_scale": 1.5}}
    return config
