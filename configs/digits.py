"""EfficientNetV2-B0 on scikit-learn's 1,797 handwritten digits, progressively, in minutes on a CPU.

Command:  make train, or python -m effnetv2_jax.train --config=configs/digits.py --workdir=DIR
Hardware:  2 CPU cores
Result:    top-1 97.22 % on test with seed 0; 2 min 41 s, installed. With the orders and draws of
           earlier versions 97.78, 97.50, 97.78 (seeds 0, 1, 2), 96.39 and 98.06 % (seed 0)
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.name = "efficientnetv2-b0"
    config.model.dtype = "float32"
    # 45 steps an epoch: the moving statistics must follow within one.
    config.model.bn_momentum = 0.9
    config.model.head_init_scale = 0.1
    config.model.survival_prob = 0.9

    config.data.name = "digits"
    # Digits of 8 × 8 px fill their images: even a crop of 80 % cuts strokes off, and a mirrored
    # digit would be another sign.
    config.data.preprocessing = "finetune"
    config.data.flip = False
    config.data.randaugment_layers = 1
    # About as large against 40 px as the usual 100 is against 300 px; strokes are too few to cut.
    config.data.translate_const = 10.0
    config.data.cutout_const = 0.0

    config.epochs = 16.0
    config.batch_size = 32

    # So close together because at these sizes a network hardly knows an image of another size:
    # trained at 24 px, it had 97 % at 24 px and 23 % at 32 px.
    config.schedule.image_size = (36, 40)
    config.schedule.randaugment_magnitude = (5.0, 7.0)
    config.schedule.dropout_rate = (0.1, 0.2)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    # The full rate until the last stage: each one has a new size to learn.
    config.optimizer.decay = "cooldown"
    config.optimizer.decay_epochs = 4.0
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-2

    config.ema_decay = 0.97
    config.eval_image_size = 40
    config.eval_batch_size = 60

    config.log_every_steps = 10
    config.checkpoint.every_steps = 1000
    return config
