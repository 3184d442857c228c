"""MAR on 8x8 digits whose head draws a token in one call: the distillation of ARDiT.

    python -m jaxar.train --config=configs/ardit_digits.py --workdir=out/ardit_digits

Needs its teacher, the run of configs/mar_flow_digits.py in out/mar_flow_digits.

Cost: about 21 minutes on one CPU core that other work shares.
Expected: fd_digits 3.9 in 16 calls (teacher 5.6, floor 0.86), class consistency 99 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.teacher = {"from_": "out/mar_flow_digits"}
    config.method = {"name": "ardit", "guidance_scale": 1.5}
    config.optim = {
        "learning_rate": 5e-4,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "weight_decay": 0.0,
        "ema": (0.995,),
    }
    config.train = {"num_steps": 1000, "batch_size": 64, "checkpoint_every": 500}
    config.sample = {"num_steps": 16}
    config.eval = {"every": 500, "sample_every": 1000, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.sample.num_steps = 4
        config.method.draws = 1
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
