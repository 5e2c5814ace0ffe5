"""A run of the training program that compiles in seconds, with what is random in a model.

Stochastic depth and dropout are drawn by an example's number in the batch; there is no Mixup, as
examples lie beside others where several processes read a batch.
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

# Of which differences in rounding stay as small as they are.
SGD = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.1",
    "--config.optimizer.warmup_epochs=0.0",
)

# What takes seconds to start.
QUICK = ("--config.data.augmentation=none", "--config.data.eval_split=test[:64]")
