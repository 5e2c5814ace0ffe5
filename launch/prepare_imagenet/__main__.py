"""ImageNet's tar files → TFDS's files, on this machine or in a bucket.

  python -m launch.prepare_imagenet.__main__ --tar_dir=DIR --data_dir=gs://BUCKET/tfds

DIR, which may be in a bucket too, has ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as
image-net.org gives them out. The files hold, record for record, what ``tfds build imagenet2012``
makes. But nothing is unpacked on the way, and where it was interrupted the same command goes on
from the files that are there, to the same bytes.
"""

import tensorflow as tf
from absl import flags

from effnetv2_jax.runtime import cli
from effnetv2_jax.runtime.errors import UsageError
from launch.prepare_imagenet.prepare import prepare

TAR_DIR = flags.DEFINE_string("tar_dir", None, "Folder or bucket of the tar files.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder or bucket of TFDS's data sets, what data.dir is to be.", required=True
)
THREADS = flags.DEFINE_integer("threads", 16, "Files written at a time.", lower_bound=1)
PARTIAL = flags.DEFINE_bool("partial", False, "Take tar files that have not all of the images.")


def main() -> None:
    try:
        prepare(TAR_DIR.value, DATA_DIR.value, threads=THREADS.value, partial=PARTIAL.value)
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(
            f"data_dir {DATA_DIR.value!r} cannot be written ({error}): when it can, the same "
            "command goes on"
        ) from error


if __name__ == "__main__":
    cli.run(main)
