"""Makes TFDS's files from ImageNet's tar files, on this machine or in a bucket.

  python -m launch.prepare_imagenet --tar_dir=DIR --data_dir=gs://BUCKET/tfds

DIR, which may be in a bucket too, has ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as
image-net.org offers them. The files have the same records as those of ``tfds build imagenet2012``.
Nothing is unpacked on the way. If the command is interrupted, run it again: it goes on from the
files that exist, to the same bytes.
"""

import tensorflow as tf
from absl import flags

from effnetv2_jax.runtime import cli
from effnetv2_jax.runtime.errors import UsageError, reason
from launch.prepare_imagenet.prepare import prepare

TAR_DIR = flags.DEFINE_string(
    "tar_dir", None, "Folder or bucket with the tar files.", required=True
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder or bucket for the data sets of TFDS; config.data.dir in training.",
    required=True,
)
THREADS = flags.DEFINE_integer(
    "threads", 16, "Number of files written at the same time.", lower_bound=1
)
PARTIAL = flags.DEFINE_bool("partial", False, "Accept tar files that lack some of the images.")


def main() -> None:
    try:
        prepare(TAR_DIR.value, DATA_DIR.value, threads=THREADS.value, partial=PARTIAL.value)
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(
            f"data_dir {DATA_DIR.value!r} cannot be written ({reason(error)}): mend that and run "
            "the same command again"
        ) from error


if __name__ == "__main__":
    cli.run(main)
