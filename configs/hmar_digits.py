"""Markovian next-scale prediction with mask passes over the token maps of 8x8 digits: 0.72M parameters.

    python -m jaxar.train --config=configs/hmar_digits.py --workdir=out/hmar_digits

Needs the tokenizer of configs/multiscale_vq_digits.py in out/multiscale_vq_digits.
Cost: about eight minutes on one CPU core that other work shares.
Expected: fd_digits 2.4 (floor 0.86), class consistency 99 %.
"""

from common import base, check_argument
from ml_collections import ConfigDict

NEXT_SCALE, REFINE = 800, 400  # steps of the two stages


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "digits"}
    config.tokenizer = {"from_": "out/multiscale_vq_digits"}
    config.model = {"num_layers": 4, "width": 96, "num_heads": 3, "dropout": 0.0}
    config.method = {"name": "hmar", "refiner_layers": 2, "refine_start": NEXT_SCALE}
    # Each network anneals by the end of its own stage.
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {
            "name": "infinite",
            "warmup_steps": 100,
            "anneal_start": NEXT_SCALE // 2,
            "anneal_steps": NEXT_SCALE // 2,
        },
        "clip_norm": 2.0,
        "ema": (0.995,),
        "players": {
            "refiner": {
                "learning_rate": 1e-3,
                "schedule": {"anneal_start": NEXT_SCALE + REFINE // 2, "anneal_steps": REFINE // 2},
            }
        },
    }
    config.train = {"num_steps": NEXT_SCALE + REFINE, "batch_size": 64, "checkpoint_every": 400}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.8, "mask_schedule": ((1,), (1, 3), (2, 3, 4))}
    config.eval = {"every": 200, "sample_every": NEXT_SCALE + REFINE, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.method.update({"refiner_layers": 1, "refine_start": 1})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
