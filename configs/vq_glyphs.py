"""VQ tokenizer of 32x32 colour glyphs: 64 tokens out of 1024 codes.

Command: python -m jaxar.train --config=configs/vq_glyphs.py --workdir=out/vq_glyphs
Cost: 20,000 steps of 64 images; not timed.
Expected: not measured.
"""

from common import base, check_argument


def get_config(arg: str = ""):
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "glyphs", "image_size": 32}
    config.tokenizer = {
        "name": "vq",
        "quantizer": {"name": "l2_vq", "vocab_size": 1024, "channels": 8},
        "latent_channels": 64,
        "stack": {"channels": 64, "multipliers": (1, 1, 2), "num_res_blocks": 1},
    }
    config.model = {"channels": 32, "num_layers": 2}
    config.method = {"name": "autoencoder", "l1": 0.2, "adversarial": {"weight": 0.1, "start": 10_000}}
    config.optim = {
        "learning_rate": 4e-4,
        "schedule": {"name": "cosine", "warmup_steps": 500},
        "weight_decay": 0.0,
        "ema": (0.999,),
    }
    config.train = {"num_steps": 20_000, "batch_size": 64}
    config.eval = {"every": 2_000, "sample_every": 2_000, "ema": "0.999"}
    if arg == "smoke":
        config.data.update({"train_size": 64, "test_size": 16})
        config.tokenizer.stack.update({"channels": 8, "groups": 4})
        config.tokenizer.quantizer.vocab_size = 16
        config.tokenizer.latent_channels = 8
        config.model.update({"channels": 8, "groups": 4})
        config.method.adversarial.start = 1
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1, "batch_size": 8, "grid": 8})
    return config
