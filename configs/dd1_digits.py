"""One-step student of the raster model of 8x8 digits: Distilled Decoding 1.

    python -m jaxar.pairs --config=configs/dd1_digits.py --out=out/dd1_pairs --num=16384
    python -m jaxar.train --config=configs/dd1_digits.py --workdir=out/dd1_digits --config.data.cache=out/dd1_pairs

Needs its teacher, the run of configs/ar_digits.py in out/ar_digits. Without a store of pairs every step rolls the
teacher out.

Cost: 0.2 s per step on one CPU core, and 2.5 ms per stored pair.
Expected: fd_digits 2.8 in 1 call (teacher 1.7, floor 0.86), class consistency 100 %, with new pairs in every step.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.teacher = {"from_": "out/ar_digits"}
    # The law to learn: the teacher's own sampling options. Ten steps of the flow give 1 % of the tokens another code.
    config.method = {"name": "dd1", "flow_steps": 10, "teacher": {"guidance_scale": 1.5, "temperature": 0.9}}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 40},
        "b2": 0.99,
        "weight_decay": 0.0,
        "ema": (0.98,),
    }
    config.train = {"num_steps": 3000, "batch_size": 64, "checkpoint_every": 1000}
    config.eval = {"every": 500, "sample_every": 500, "reference": "digits", "ema": "0.98"}
    if arg == "smoke":
        config.method.flow_steps = 4
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
