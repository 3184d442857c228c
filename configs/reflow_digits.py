"""Rectified flow from pairs of the flow model of 8x8 digits.

    python -m jaxar.train --config=configs/reflow_digits.py --workdir=out/reflow_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. It is the teacher of instaflow_digits.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    solver_steps = 2 if arg == "smoke" else 8
    config.method = {"name": "reflow", "solver_steps": solver_steps, "teacher": {"guidance_scale": 1.5}}
    return config
