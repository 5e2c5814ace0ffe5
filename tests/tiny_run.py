"""A run of the training program that compiles in seconds and has random depth and dropout.

These are drawn by an example's number in the batch. There is no Mixup, because examples have other
neighbours if several processes read a batch.
"""

CONFIG = (
    "--config=configs/digits.py",
    "--config.model.name=efficientnetv2-tiny",
    "--config.model.survival_prob=0.8",
    "--config.schedule.num_stages=1",
    "--config.schedule.image_size=(16,16)",
    "--config.schedule.dropout_rate=(0.5,0.5)",
    "--config.batch_size=64",
    "--config.eval_batch_size=64",
    "--config.eval_image_size=16",
    "--config.log_every_steps=1",
)

# An optimizer that does not amplify differences in rounding.
SGD = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.1",
    "--config.optimizer.warmup_epochs=0.0",
)

# Without the parts that take seconds to start.
QUICK = ("--config.data.augmentation=none", "--config.data.eval_split=test[:64]")
