"""Several processes as one run: how they meet, agree, and let the first one go ahead.

A TPU pod runs one process a host, all with the same command. With one process, nothing here does
anything.
"""

import collections
import contextlib
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from effnetv2_jax.runtime.errors import UsageError

_LOOPBACK = ("localhost", "127.0.0.1")
_RETRY_SECONDS = 0.5


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the other processes of the run; has to come before anything that touches a device.

    Without arguments, JAX asks the environment (Cloud TPU, Slurm, Open MPI, Kubernetes); where that
    knows of no other processes, this one runs alone.

    Args:
        coordinator_address: HOST:PORT of process 0, which listens there.
        num_processes: of the run; 1 runs alone, whatever the environment says.
        process_id: of this one, 0 … num_processes − 1.
        timeout: seconds to wait for the others.

    Raises:
        UsageError: for arguments that do not go together, and where the processes do not meet.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    _join(coordinator_address, num_processes, process_id, timeout)
    # JAX's preemption service takes SIGTERM as an announcement, and nothing else would come of it
    # in programs that never ask whether there was one. Its other announcements are left.
    signal.signal(signal.SIGTERM, on_sigterm)


def _join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> None:
    if coordinator_address is num_processes is process_id is None:
        _start_from_environment(timeout)
        return
    _check(coordinator_address, num_processes, process_id)
    if num_processes == 1 or coordinator_address is None:
        return
    # JAX itself aborts without a word of its own where the processes cannot meet.
    if process_id == 0:
        _check_port(coordinator_address)
    else:
        _await_coordinator(coordinator_address, timeout)
    host, _ = _host_and_port(coordinator_address)
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        # By default it listens to every network, which on one machine nobody needs.
        coordinator_bind_address=coordinator_address if host in _LOOPBACK else None,
    )


def _start_from_environment(timeout: int) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError as error:
        # JAX has no other word for an ordinary machine.
        if "coordinator_address" not in str(error):
            raise UsageError(f"the environment does not say who runs: {error}") from error
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the processes that the environment announces did not meet ({_one_line(error)}): "
            "start all of them, or use --num_processes=1 to run alone"
        ) from error


def _check(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    needed: dict[str, object] = {"num_processes": num_processes}
    if num_processes != 1:
        needed |= {"coordinator_address": coordinator_address, "process_id": process_id}
    missing = [name for name, value in needed.items() if value is None]
    if num_processes is None or missing:
        raise UsageError(
            "coordinator_address, num_processes and process_id belong together, "
            f"{' and '.join(missing)} not given"
        )
    if num_processes < 1:
        raise UsageError(f"num_processes must be at least 1, got {num_processes}")
    if process_id is not None and not 0 <= process_id < num_processes:
        raise UsageError(
            f"process_id must be in 0 … {num_processes - 1} with num_processes {num_processes}, "
            f"got {process_id}"
        )
    if coordinator_address is not None:
        _host_and_port(coordinator_address)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"coordinator_address must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)  # of IPv6


def _check_port(address: str) -> None:
    host, port = _host_and_port(address)
    try:
        with socket.socket() as probe:
            # Connections of an earlier run that linger do not matter, a listener does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host if host in _LOOPBACK else "", port))
    except OSError as error:
        raise UsageError(
            f"process 0 cannot listen at coordinator_address {address!r}: {error.strerror}"
        ) from error


def _await_coordinator(address: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(_host_and_port(address), _RETRY_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"process 0 does not answer at coordinator_address {address!r} within "
                    f"{timeout} s: {error.strerror or error}"
                ) from error
        time.sleep(_RETRY_SECONDS)


def _one_line(error: BaseException) -> str:
    """What happened, without the trailers of gRPC and XLA."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_first() -> bool:
    """Whether this is process 0, which alone writes and tells."""
    return jax.process_index() == 0


def part(timeout: float | None = None) -> None:
    """Leaves the other processes, which have to do the same, so that each can end by itself.

    Args:
        timeout: seconds to wait for the others, who may know nothing of it; None for no limit.
    """
    if jax.distributed.is_initialized():
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(timeout)


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Args:
        name: the same in all, else they fail.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Process 0 goes through the block before the others enter it: they find made what it makes.

    Where it fails there, the others wait in vain; whoever started them has to end them.

    Args:
        name: as for ``barrier``.
    """
    if not is_first():
        barrier(name)
    yield
    if is_first():
        barrier(name)


def agree(values: Mapping[str, object]) -> None:
    """Makes sure that all processes are about to do the same.

    Args:
        values: what has to be the same, by name; of what JSON can hold.

    Raises:
        UsageError: in every process, naming what differs, or where they have not as many devices.
    """
    if jax.process_count() == 1:
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    _refuse_differences("the machine", [{"devices": devices[i]} for i in sorted(devices)])
    text = json.dumps(values, sort_keys=True).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    if len({row.tobytes() for row in multihost_utils.process_allgather(digest)}) == 1:
        return
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.frombuffer(text.ljust(lengths.max()), np.uint8)
    texts = [row.tobytes() for row in multihost_utils.process_allgather(padded)]
    _refuse_differences("the config", [json.loads(text) for text in texts])


def _refuse_differences(what: str, by_process: list[dict[str, object]]) -> None:
    different = []
    for name in sorted(set().union(*by_process)):
        first_with: dict[str, int] = {}
        for process, values in enumerate(by_process):
            value = repr(values[name]) if name in values else "not there"
            first_with.setdefault(value, process)
        if len(first_with) > 1:
            sides = ", ".join(
                f"process {process}: {value}" for value, process in first_with.items()
            )
            different.append(f"{name} ({sides})")
    if different:
        raise UsageError(f"processes disagree on {what}: {', '.join(different)}")
