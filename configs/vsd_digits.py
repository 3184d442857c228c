"""One-step student of flow matching on 8x8 digits by variational score distillation, as in Diff-Instruct.

    python -m jaxar.train --config=configs/vsd_digits.py --workdir=out/vsd_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits, from whose weights generator and score start.
The other configurations of score distillation build on this one.

Cost: about 14 minutes on one CPU core that other work shares.
Expected: fd_digits 3.1 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    # The generator is called where its teacher still sees something: there it starts far better than at noise alone.
    config.method = {"name": "vsd", "guidance_scale": 1.5, "calls": (0.7,)}
    config.optim = {
        "learning_rate": 2e-4,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "b1": 0.0,
        "b2": 0.99,
        "weight_decay": 0.0,
        "ema": (0.995,),
        "players": {"score": {"learning_rate": 5e-4}},
    }
    return config
