"""Flow matching over the pixels of 8x8 digits: a transformer over 16 patches, 0.7M parameters.

    python -m jaxar.train --config=configs/flow_digits.py --workdir=out/flow_digits

Cost: about eight minutes on one CPU core that other work shares.
Expected: fd_digits 2.6 (floor 0.86), class consistency 99 %.

The argument `unet` trains a U-Net of about the same size in place of the transformer.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "unet")
    config = base()
    config.data = {"name": "digits"}
    config.model = {"num_layers": 4, "width": 96, "num_heads": 4, "patch_size": 2}
    config.method = {"name": "flow_matching", "path": "linear"}
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "b2": 0.95,
        "weight_decay": 0.0,
        "ema": (0.995,),
    }
    config.train = {"num_steps": 3000, "batch_size": 64, "checkpoint_every": 500}
    config.sample = {"solver": "heun", "num_steps": 16, "guidance_scale": 1.5}
    config.eval = {"every": 500, "sample_every": 3000, "reference": "digits", "ema": "0.995"}
    if arg == "unet":
        config.model = {"name": "unet", "channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention": (4,)}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.sample.update({"num_steps": 3})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
