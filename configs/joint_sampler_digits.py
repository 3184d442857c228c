"""A joint-sampling layer over MaskGIT on 8x8 digits: 0.14M parameters, four calls of the teacher per image.

    python -m jaxar.train --config=configs/joint_sampler_digits.py --workdir=out/joint_sampler_digits

Needs the teacher of configs/maskgit_digits.py in out/maskgit_digits.

Cost: about 4 minutes on one CPU core that other work shares.
Expected: fd_digits 3.8 in 4 calls (teacher 2.6, floor 0.86), class consistency 99 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.teacher = {"from_": "out/maskgit_digits"}
    config.model = {"num_heads": 3}
    config.method = {"name": "joint_sampler", "group": 4}
    config.optim = {
        "learning_rate": 1e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "ema": (0.995,),
    }
    config.train = {"num_steps": 1000, "batch_size": 64, "checkpoint_every": 500}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.9}
    config.eval = {"every": 500, "sample_every": 1000, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.model.num_heads = 2
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
