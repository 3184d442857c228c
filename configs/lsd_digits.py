"""A learnt sampler of four steps for the masked diffusion of 8x8 digits: one coefficient per step (LSD).

    python -m jaxar.train --config=configs/lsd_digits.py --workdir=out/lsd_digits

Needs its teacher, the run of configs/mdm_digits.py in out/mdm_digits, which takes sixteen calls of the network for an
image. With the argument `times` the times of the steps are learnt too (LSD+). The student is rolled out in every step,
and the teacher called once for each of its tokens.

Cost: about 3 minutes on one CPU core that other work shares.
Expected: fd_digits 3.5 in 4 calls (teacher 2.9, floor 0.86), class consistency 100 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "times")
    config = base()
    config.data = {"name": "digits"}
    config.teacher = {"from_": "out/mdm_digits"}
    # The law to learn: the teacher's own sampling options.
    config.method = {
        "name": "lsd",
        "num_steps": 4,
        "learn_times": arg in ("smoke", "times"),
        "teacher": {"guidance_scale": 1.5, "temperature": 0.9},
    }
    config.optim = {
        "learning_rate": 2e-2,
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "weight_decay": 0.0,
        "ema": (0.99,),
    }
    config.train = {"num_steps": 300, "batch_size": 32, "checkpoint_every": 100}
    config.eval = {"every": 100, "sample_every": 300, "reference": "digits", "ema": "0.99"}
    if arg == "smoke":
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
