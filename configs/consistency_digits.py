"""Consistency distillation of the flow model of 8x8 digits.

    python -m jaxar.train --config=configs/consistency_digits.py --workdir=out/consistency_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. With the argument `ict` or `ect` there is no
teacher: consistency training on data, with levels that double in number or continuous ones; `ect` starts with the
weights of out/flow_digits.

Cost: about 2 minutes on one CPU core that other work shares.
Expected: fd_digits 2.3 in 1 call (teacher 2.6, floor 0.86), class consistency 99 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, "ict", "ect", taught=arg not in ("ict", "ect"))
    config.method = {"name": "consistency", "levels": {"name": "fixed", "count": 18}}
    if arg not in ("ict", "ect"):
        config.method.teacher = {"guidance_scale": 1.5}
    if arg == "ict":
        levels = {"name": "doubling", "first": 4, "last": 64, "num_steps": 3000}
        config.method.levels = levels
        config.method.update({"target_decay": None, "huber": 0.03, "weight": "gap"})
        config.train.num_steps = 3000
    if arg == "ect":
        levels = {"name": "continuous", "double_every": 250}
        config.method.levels = levels
        config.method.update({"target_decay": None, "huber": 0.03, "weight": "gap"})
        config.init_from = {"from_": "out/flow_digits"}
    if arg == "smoke":
        config.method.levels.count = 2
    return config
