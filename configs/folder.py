"""EfficientNetV2-B0 on your own images, trained from scratch and progressively.

docs/own_images.md explains the folder and the steps.

Command:   python -m effnetv2_jax.train --config=configs/folder.py
           --config.data.name=folder:PATH --workdir=DIR
Hardware:  one GPU, or a CPU for a few thousand images; batches of 64 images at 128 to 192 px
Result:    depends on the images
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common.get_config()
    config.model.name = "efficientnetv2-b0"
    # With hundreds of steps instead of hundreds of thousands, averages must follow sooner.
    config.model.bn_momentum = 0.9
    config.model.head_init_scale = 0.1
    config.ema_decay = 0.99

    config.data.name = "folder:images"
    config.data.eval_split = "val"
    config.data.max_bad_fraction = 0.01

    config.epochs = 40.0
    config.batch_size = 64
    config.schedule.image_size = (128, 192)
    config.schedule.randaugment_magnitude = (5.0, 10.0)
    config.schedule.dropout_rate = (0.1, 0.2)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_schedule = "cosine"
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.weight_decay = 1e-2

    config.eval_image_size = 224
    config.eval_batch_size = 64
    config.log_every_steps = 10
    return config
