"""Training on simulated devices of two slices: of even processes, and of odd ones.

So the order of slices is not that of processes, nor that of devices.
"""

from effnetv2_jax import train
from effnetv2_jax.runtime import config as programs
from effnetv2_jax.training import mesh


def main() -> None:
    mesh.slice_of = lambda device: device.process_index % 2
    train.main()


if __name__ == "__main__":
    programs.run(main)
