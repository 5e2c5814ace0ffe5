"""Every field of a recipe with its meaning and default; the defaults are the official code's.

``--config.FIELD=VALUE`` sets a field on the command line, as in ``--config.optimizer.name=adamw``.
The values that numbers may have are in NUMBERS of effnetv2_jax/runtime/config.py.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Returns the base config, which recipes change."""
    config = ml_collections.ConfigDict()

    # Seed of the first weights and of everything random in training; from 0 to 2³² − 1.
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    # Name of the model, as listed by effnetv2_jax.list_models().
    config.model.name = "efficientnetv2-s"
    # Dtype of the computation: float32, bfloat16 or auto, which is bfloat16 on TPUs and GPUs and
    # float32 on CPUs. A run keeps that of its first start. Parameters are always float32.
    config.model.dtype = "auto"
    # Momentum of batch norm's moving statistics, in 0 … 1; closer to 1 averages over more steps.
    config.model.bn_momentum = 0.99
    # Padding of convolutions (same or symmetric) and epsilon of batch norm. None means the model's
    # own. Weights that were trained in PyTorch need "symmetric" and 1e-5.
    config.model.padding = config_dict.placeholder(str)
    config.model.bn_epsilon = config_dict.placeholder(float)
    # Epsilon of a ViT's layer norm. None means the model's own.
    config.model.norm_epsilon = config_dict.placeholder(float)
    # Factor on the initial weights of the official classifier, see EfficientNetSpec.
    config.model.head_init_scale = 1.0
    # Probability that the last block is kept in stochastic depth, in 0 … 1; 1 turns it off.
    config.model.survival_prob = 0.8
    # Number of devices that share batch norm's statistics. With fewer devices, or with 0, all do.
    config.model.bn_group_size = 8
    # Activations that the backward pass recomputes to save memory: none, blocks or stages.
    config.model.remat = "none"
    # Compiles equal blocks of an EfficientNet as a loop, which takes less time to compile.
    config.model.scan_blocks = False

    # Weights that training begins with: a file, a folder, a published name or an address, which are
    # fetched (docs/weights.md). A classifier for other classes is left out. Empty means random
    # weights.
    config.init_weights = ""
    # timm's name of the network in init_weights, such as tf_efficientnetv2_s.in1k, if neither the
    # file nor its name tells it.
    config.init_architecture = config_dict.placeholder(str)

    config.data = ml_collections.ConfigDict()
    # Name of the data set; folder:PATH for your own images, tfds:NAME for any data set of TFDS.
    config.data.name = "synthetic"
    # Folder of TFDS's files, or of ImageNet's official TFRecords. Empty means TFDS's default.
    config.data.dir = ""
    # Fraction of a folder's training images that become its split val, if it has no such split.
    config.data.holdout = 0.1
    # Largest fraction of undecodable examples in a split; above it, training stops with an error.
    # Five, or half of a small split, are always allowed. 0 allows none.
    config.data.max_bad_fraction = 0.001
    # Splits for training and evaluation, such as train, train[:80%] or test.
    config.data.train_split = "train"
    config.data.eval_split = "test"
    # Input family: a name in effnetv2_jax/preprocessing.py, with changes such as torch,crop=1.0.
    # Empty means the model's own.
    config.data.preprocessing = ""
    # Turns photographs as their EXIF says, in training, evaluation and prediction. Published
    # networks were trained and measured without it.
    config.data.exif_orientation = False
    # Mirrors half of the training images.
    config.data.flip = True
    # Augmentation of training images: randaugment, autoaugment, none, or cutout (a noisy square,
    # with which the published code fine-tunes).
    config.data.augmentation = "randaugment"
    # Number of operations that RandAugment applies to an image.
    config.data.randaugment_layers = 2
    # Largest shift and side of the cut-out square in px, at magnitude 10. None means the
    # augmentation's own.
    config.data.translate_const = config_dict.placeholder(float)
    config.data.cutout_const = config_dict.placeholder(float)
    # Smallest and largest area of the random crop, as fractions of the image. Empty means the input
    # family's.
    config.data.area_range = ()
    # Order of training examples: shuffled shows each once per epoch; balanced shows all classes
    # equally often, whatever their numbers of examples.
    config.data.sampler = "shuffled"

    # Number of passes over the training split; it may be a fraction.
    config.epochs = 350.0
    # Number of images of a step, over all devices.
    config.batch_size = 4096
    # Number of parts in which a device works through its share of a batch, one after the other, if
    # the share does not fit into memory at once.
    config.accumulation_steps = 1
    # Dtype in which gradients are summed over devices: float32 or bfloat16.
    config.reduce_dtype = "float32"
    # Number of neighbouring devices that share one copy of parameters, optimizer and averages
    # (ZeRO). 1 means that each device has a copy.
    config.fsdp = 1

    # Schedule of image size and regularisation; ranges are (first stage, last stage).
    config.schedule = ml_collections.ConfigDict()
    # Name in effnetv2_jax/progressive.py: paper, official, fixed, progressive_resize, random_resize
    # or adaptive_random_resize.
    config.schedule.name = "paper"
    # Number of stages.
    config.schedule.num_stages = 4
    # Side of the training images in px.
    config.schedule.image_size = (128, 300)
    # Magnitude of RandAugment; 10 is the usual strength.
    config.schedule.randaugment_magnitude = (5.0, 15.0)
    # Parameters of the Beta distributions of Mixup and CutMix; 0 turns them off.
    config.schedule.mixup_alpha = (0.0, 0.0)
    config.schedule.cutmix_alpha = (0.0, 0.0)
    # Dropout rate before the classifier, in 0 … 1.
    config.schedule.dropout_rate = (0.1, 0.3)
    # Difference in px between the sizes that random_resize draws from.
    config.schedule.size_step = 32

    config.optimizer = ml_collections.ConfigDict()
    # Name of the optimizer: rmsprop, sgd, momentum, adam or adamw.
    config.optimizer.name = "rmsprop"
    # Arguments of the optax function by name, such as b1, b2, eps, momentum or nesterov, as in
    # --config.optimizer.options.b2=0.95. Empty means the defaults in training/optimizers.py.
    config.optimizer.options = ml_collections.ConfigDict()
    # Largest learning rate; the default is 0.016 for every 256 images of a batch.
    config.optimizer.learning_rate = 0.256
    # Course of the learning rate after the warm-up: exponential, cosine, constant or cooldown.
    config.optimizer.learning_rate_schedule = "exponential"
    # Number of epochs in which the learning rate rises from 0.
    config.optimizer.warmup_epochs = 5.0
    # For exponential, the number of epochs between two decays; for cooldown, the number of epochs
    # of the fall to 0 that ends training.
    config.optimizer.decay_epochs = 2.4
    # For exponential, the factor of a decay.
    config.optimizer.decay_rate = 0.97
    # Factor of weight decay on kernels: decoupled in adamw, otherwise an L2 loss.
    config.optimizer.weight_decay = 1e-5
    # Largest norm of gradients; 0 means no clipping.
    config.optimizer.clip_norm = 0.0

    # Training loss: softmax or sigmoid.
    config.loss = "softmax"
    # Weights of the classes in the training loss. None means 1 for all; "balanced", one over a
    # class's share of the examples; (1.0, 2.5), one for each class in their order; {"cat": 2.5},
    # those of some classes by name, while the others have 1.
    config.class_weights = config_dict.placeholder(object)
    # Label smoothing of the loss, in 0 … 1.
    config.label_smoothing = 0.1
    # Decay of the moving averages of weights, in 0 … 1; closer to 1 averages over more steps.
    config.ema_decay = 0.9999

    # Side in px and number of the images of a batch in evaluations, over all devices.
    config.eval_image_size = 384
    config.eval_batch_size = 512
    # Evaluations by name, which prefixes their metrics (eval/top1). The one called eval, or without
    # it the first by name, scores the best checkpoint. Each may set these fields:
    #   data         name of the data set, with the classes of data.name; default data.name
    #   split        default data.eval_split
    #   image_size   side in px; default eval_image_size
    #   batch_size   number of images of a batch; default eval_batch_size
    #   weights      ema (moving averages) or raw; default ema
    #   every_steps  number of steps between two evaluations; 0, the default, means one at the end
    #                of every stage
    # --config.evals.raw.weights=raw adds an evaluation called raw.
    config.evals = ml_collections.ConfigDict({"eval": {}})

    # Number of steps between two lines of the log and of metrics.jsonl.
    config.log_every_steps = 100

    # Checkpoints. The end of every stage, and a run that is asked to stop, have one as well.
    config.checkpoint = ml_collections.ConfigDict()
    # Number of steps, and of seconds, between two checkpoints; whichever is shorter.
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_seconds = 900.0
    # Checkpoints that are kept: the newest ones, those of every n-th step (0 means none of these),
    # and the best by top-1 of the evaluations.
    config.checkpoint.keep_newest = 3
    config.checkpoint.keep_every_steps = 0
    config.checkpoint.keep_best = 1

    # Number of steps in a row with a loss or gradient that is not finite, after which training
    # stops with an error. Such steps change nothing.
    config.max_bad_steps = 10
    # Number of seconds without a step, after which the log gets the stacks of all threads. Set it
    # above the time that a stage takes to compile.
    config.stall_seconds = 900.0
    return config
