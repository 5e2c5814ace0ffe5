"""Training on simulated devices in two slices: one of even processes, one of odd processes.

The order of slices is then neither that of processes nor that of devices.
"""

from effnetv2_jax import train
from effnetv2_jax.runtime import cli
from effnetv2_jax.training import mesh


def main() -> None:
    mesh.slice_of = lambda device: device.process_index % 2
    train.main()


if __name__ == "__main__":
    cli.run(main, several_processes=True)
