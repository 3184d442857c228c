"""One-step student of flow matching on 8x8 digits by variational score distillation, as in Diff-Instruct.

    python -m jaxar.train --config=configs/vsd_digits.py --workdir=out/vsd_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits, from whose weights generator and score start.
The other configurations of score distillation build on this one.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.teacher = {"from_": "out/flow_digits"}
    config.method = {"name": "vsd", "guidance_scale": 1.5}
    config.optim = {
        "learning_rate": 2e-4,
        "schedule": {"name": "constant", "warmup_steps": 100},
        "b1": 0.0,
        "b2": 0.99,
        "weight_decay": 0.0,
        "ema": (0.995,),
        "players": {"score": {"learning_rate": 5e-4}},
    }
    config.train = {"num_steps": 3000, "batch_size": 64, "checkpoint_every": 500}
    config.eval = {"every": 500, "sample_every": 500, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
