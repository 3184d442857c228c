"""MaskGIT's tokenizer of ImageNet at 256 pixels: 256 tokens out of 1024 codes, 54.5M parameters.

Command: python -m jaxar.train --config=configs/maskgit_vq_imagenet256.py --workdir=DIR --config.data.root=IMAGENET
Cost: not timed; the paper does not state the number of steps, so it is LlamaGen's.
Expected: rFID 2.28 on the validation images (published; not repeated here).
"""

from common import base, check_argument


def get_config(arg: str = ""):
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "image_size": 256, "crop": "random"}
    config.tokenizer = {"name": "maskgit_vq", "dtype": "bfloat16"}
    config.method = {"name": "autoencoder", "l2": 1.0, "adversarial": {"weight": 0.1, "start": 20_000}}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant"},
        "b2": 0.99,
        "weight_decay": 0.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 400_000, "batch_size": 128, "checkpoint_every": 5_000}  # 40 epochs
    config.eval = {"every": 10_000, "max_batches": 40, "batch_size": 128, "sample_every": 10_000, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs", "image_size": 32, "train_size": 64, "test_size": 16}
        config.tokenizer.update(
            {"vocab_size": 16, "code_channels": 8, "channels": 8, "multipliers": (1, 1, 2), "num_res_blocks": 1}
        )
        config.tokenizer.groups = 4
        config.model = {"channels": 8, "num_layers": 2, "groups": 4}
        config.method.adversarial.start = 1
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1, "batch_size": 8, "grid": 8})
    return config
