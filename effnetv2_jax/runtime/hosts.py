"""Several processes as one run: joining them, checking that they agree, and waiting for the first.

A TPU pod runs one process per host, all with the same command. With a single process, these
functions do nothing.
"""

import collections
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

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
    """Joins the other processes of the run; call it before anything touches a device.

    Without arguments, JAX asks the environment (Cloud TPU, Slurm, Open MPI, Kubernetes). If the
    environment announces no other processes, this one is the whole run.

    Args:
        coordinator_address: HOST:PORT at which process 0 listens.
        num_processes: The number of processes of the run. 1 means a run of one process, even if
            the environment announces others.
        process_id: The number of this process, 0 … num_processes − 1.
        timeout: The number of seconds to wait for the others.

    Raises:
        UsageError: For arguments that contradict each other, and if the processes do not meet.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if coordinator_address is num_processes is process_id is None:
        _start_from_environment(timeout)
    else:
        _check(coordinator_address, num_processes, process_id)
        if num_processes != 1 and coordinator_address is not None:
            _start_at(coordinator_address, num_processes, process_id, timeout)
    # JAX's preemption service treats SIGTERM as a notice, so that the signal would have no effect
    # in programs that never ask for notices. Its other kinds of notice stay.
    signal.signal(signal.SIGTERM, on_sigterm)


def _start_at(
    address: str, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    # If the processes cannot meet, JAX itself aborts without an explanation.
    if process_id == 0:
        _check_port(address)
    else:
        _await_coordinator(address, timeout)
    jax.distributed.initialize(
        address,
        num_processes,
        process_id,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        # By default it listens on every network, which processes on one machine do not need.
        coordinator_bind_address=address if _host_and_port(address)[0] in _LOOPBACK else None,
    )


def _start_from_environment(timeout: int) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError as error:
        # This is how JAX reports an ordinary machine.
        if "coordinator_address" not in str(error):
            raise UsageError(
                f"the environment announces processes but not all of their settings: {error}"
            ) from error
    except (RuntimeError, OSError) as error:
        # Without the trailers of gRPC and XLA.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the processes that the environment announces did not meet ({reason}): start all of "
            "them, or use --num_processes=1 to run alone"
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
            # Lingering connections of an earlier run do not matter, but a listener does.
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


def is_first() -> bool:
    """Returns True for process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def part(timeout: float | None = None) -> None:
    """Leaves the run, so that this process can end by itself; all processes must do this.

    Args:
        timeout: The number of seconds to wait for the others, which may not be leaving. None means
            no limit.
    """
    if jax.distributed.is_initialized():
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(timeout)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Runs the block in process 0 first and then in the others, which find what process 0 made.

    A UsageError in one process is raised in all of them, so that none waits for one that has ended.

    Args:
        name: The name of the block, for messages.
    """
    if not is_first():
        _raise_first_error(name, None)
    try:
        yield
    except UsageError as error:
        _raise_first_error(name, error)
        raise
    if is_first():
        _raise_first_error(name, None)
    _raise_first_error(name, None)


def agree(values: Mapping[str, object], what: str = "the config") -> None:
    """Checks that values are the same in all processes.

    Args:
        values: The values by name, as JSON can hold them.
        what: What the values are, for the message.

    Raises:
        UsageError: In every process, if a value or the number of devices differs, naming it.
    """
    if jax.process_count() == 1:
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    _refuse_differences("the machine", [{"devices": devices[i]} for i in sorted(devices)])
    _refuse_differences(what, _gather(values))


def _raise_first_error(name: str, own: UsageError | None) -> None:
    """Tells the others this process's error, and raises the first one of theirs."""
    if jax.process_count() == 1:
        return
    told = _gather({"block": name, "error": None if own is None else str(own)})
    assert {x["block"] for x in told} == {name}, told
    for process, error in enumerate(x["error"] for x in told):
        if own is None and error is not None:
            raise UsageError(f"process {process}: {error}")


def _gather(values: Mapping[str, object]) -> list[dict[str, Any]]:
    """Returns the values of every process, in their order."""
    text = json.dumps(values, sort_keys=True).encode()
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.frombuffer(text.ljust(lengths.max()), np.uint8)
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row.tobytes()) for row in texts]


def _refuse_differences(what: str, by_process: list[dict[str, object]]) -> None:
    different = []
    for name in sorted(set().union(*by_process)):
        first_with: dict[str, int] = {}
        for process, values in enumerate(by_process):
            value = repr(values[name]) if name in values else "not there"
            first_with.setdefault(value, process)
        if len(first_with) > 1:
            sides = [f"process {process}: {value}" for value, process in first_with.items()]
            different.append(f"{name} ({', '.join(sides)})")
    if different:
        raise UsageError(f"processes disagree on {what}: {', '.join(different)}")
