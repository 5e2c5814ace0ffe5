"""What all recipes share: every field with its meaning, at the official code's values."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The base config; ranges are (first, last) over the stages."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "efficientnetv2-s"
    # Of the computation: float32 or bfloat16. Parameters are float32.
    config.model.dtype = "bfloat16"
    config.model.bn_momentum = 0.99
    # None means the model's own. Weights that were trained in PyTorch want "symmetric" and 1e-5.
    config.model.padding = config_dict.placeholder(str)
    config.model.bn_epsilon = config_dict.placeholder(float)
    # Of a ViT's layer norm, likewise.
    config.model.norm_epsilon = config_dict.placeholder(float)
    # On the official initial classifier; see EfficientNetSpec.
    config.model.head_init_scale = 1.0
    # Of the last block, in stochastic depth.
    config.model.survival_prob = 0.8
    # Devices that average batch norm's statistics together; where there are fewer, and with 0, all.
    config.model.bn_group_size = 8
    # Computed anew in the backward pass to save memory: none, blocks or stages.
    config.model.remat = "none"
    # Equal blocks of an EfficientNet as a loop, which is compiled in less time.
    config.model.scan_blocks = False

    # What training begins with: a file, a folder or a published name (docs/weights.md), of which a
    # classifier for other classes is left out; empty means random numbers.
    config.init_weights = ""

    config.data = ml_collections.ConfigDict()
    config.data.name = "synthetic"
    # Where TFDS keeps its files (empty means its default), or ImageNet's official TFRecords are.
    config.data.dir = ""
    # Of a folder's training images that are its split val, where it has none of its own.
    config.data.holdout = 0.1
    # Of a split's examples that may be impossible to decode before the run ends with an error.
    config.data.max_bad_fraction = 0.001
    config.data.train_split = "train"
    config.data.eval_split = "test"
    # A name in effnetv2_jax/preprocessing.py; empty means the model's own.
    config.data.preprocessing = ""
    config.data.flip = True
    # randaugment, autoaugment, none, or cutout: a noisy square, as the published code fine-tunes.
    config.data.augmentation = "randaugment"
    config.data.randaugment_layers = 2
    # px at magnitude 10; None means the augmentation's own.
    config.data.translate_const = config_dict.placeholder(float)
    config.data.cutout_const = config_dict.placeholder(float)
    # Of the random crop over the image's area; empty means the family's.
    config.data.area_range = ()

    config.epochs = 350.0
    # Images a step, over all devices.
    config.batch_size = 4096
    # Parts of it that a device works through one after the other, where it does not fit at once.
    config.accumulation_steps = 1
    # In which gradients are summed over devices: float32 or bfloat16.
    config.reduce_dtype = "float32"
    # Neighbouring devices that share one copy of parameters, optimiser and averages (ZeRO).
    config.fsdp = 1

    # effnetv2_jax/progressive.py says what the schedules are.
    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "paper"
    config.schedule.num_stages = 4
    config.schedule.image_size = (128, 300)
    config.schedule.randaugment_magnitude = (5.0, 15.0)
    config.schedule.mixup_alpha = (0.0, 0.0)
    config.schedule.cutmix_alpha = (0.0, 0.0)
    config.schedule.dropout_rate = (0.1, 0.3)
    # px between the sizes that random_resize draws from.
    config.schedule.size_step = 32

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "rmsprop"
    # 0.016 for every 256 images.
    config.optimizer.learning_rate = 0.256
    config.optimizer.decay = "exponential"
    config.optimizer.warmup_epochs = 5.0
    # Between two falls of the exponential, or of the fall that ends a cooldown.
    config.optimizer.decay_epochs = 2.4
    config.optimizer.decay_rate = 0.97
    config.optimizer.weight_decay = 1e-5
    # 0 means no clipping.
    config.optimizer.clip_norm = 0.0

    config.loss = "softmax"
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999

    config.eval_image_size = 384
    config.eval_batch_size = 512

    config.log_every_steps = 100

    config.checkpoint = ml_collections.ConfigDict()
    # There is also one at the end of every stage, and when the run is asked to stop.
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_seconds = 900.0
    # Of those, the newest stay, every n-th step (0: none), and the best by the evaluations' top-1.
    config.checkpoint.keep_newest = 3
    config.checkpoint.keep_every_steps = 0
    config.checkpoint.keep_best = 1

    # Steps in a row whose loss or gradient is not finite; each is left out, so many end the run.
    config.max_bad_steps = 10
    # Without a step, after which the log gets the stacks of all threads. A compilation is no step.
    config.stall_seconds = 900.0
    return config
