"""Training on a machine that announces its end to JAX, not to the process."""

import datetime
import pathlib
import sys
import threading
import time

import jax
from absl import flags
from jax._src import distributed

from effnetv2_jax import train
from effnetv2_jax.runtime import cli

STEP = flags.DEFINE_integer(
    "notice_after_step", None, "Step of the checkpoint to wait for.", required=True
)


def announce() -> None:
    workdir = pathlib.Path(train.WORKDIR.value)
    while not (workdir / "checkpoints" / str(STEP.value)).exists():
        time.sleep(0.05)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    # What its listeners for other kinds of notice would do.
    client = distributed.global_state.client
    client.key_value_set("RECEIVED_PREEMPTION_NOTICE", soon.isoformat())
    print("notice given", file=sys.stderr, flush=True)


def main() -> None:
    if jax.process_index() == 1:
        threading.Thread(target=announce, daemon=True).start()
    train.main()


if __name__ == "__main__":
    cli.run(main, several_processes=True)
