"""Nodes and queued resources in a folder; their workers are folders and processes.

Standard library alone and quick to import: every call of gcloud does it.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import time

FIRST_PORT = (1 << 16) - (1 << 12)
"""The first port at which JAX connects the processes of Open MPI."""


class Cloud:
    """The state, in a folder of its own."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        for name in ("nodes", "queued", "workers", "buckets"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self):
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, kind, name):
        """The description of a node or queued resource; None where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / kind / f"{name}.json").read_text())
        return None

    def write(self, kind, name, description):
        path = self.folder / kind / f"{name}.json"
        path.with_suffix(".new").write_text(json.dumps(description))
        path.with_suffix(".new").replace(path)

    def remove(self, kind, name):
        (self.folder / kind / f"{name}.json").unlink()

    def names(self, kind):
        return sorted(path.stem for path in (self.folder / kind).glob("*.json"))

    def everything(self):
        """Returns everything that would cost money."""
        return self.names("nodes") + self.names("queued")

    def calls(self):
        """The arguments of all calls of gcloud so far."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return []

    def note_call(self, arguments):
        """Returns how many calls there were before."""
        with self.locked():
            count = len(self.calls())
            with open(self.folder / "calls", "a") as file:
                file.write(json.dumps(arguments) + "\n")
        return count

    def fail_at(self, call, when, message="UNAVAILABLE: currently unavailable"):
        """Makes calls fail ``before`` or ``after`` they have done their work.

        Args:
            call: one of them, counted from 0, or all of a verb.
            when: before or after.
            message: what they say.
        """
        (self.folder / "fail_at").write_text(json.dumps([call, when, message]))

    def failure(self, number, verb, when):
        """Returns the error with which a call has to fail now, or None."""
        with contextlib.suppress(FileNotFoundError):
            call, wanted, message = json.loads((self.folder / "fail_at").read_text())
            if call in (number, verb) and when == wanted:
                return message
        return None

    def home(self, node, worker):
        return self.folder / "workers" / node["id"] / str(worker)

    def create_node(self, name, description, workers):
        """Makes a node with empty workers."""
        made = len(list((self.folder / "workers").iterdir()))
        node = {
            **description,
            "id": f"{name}-{made}",
            "state": "READY",
            "health": "HEALTHY",
            "networkEndpoints": [
                {
                    "accessConfig": {"externalIp": f"203.0.113.{worker}"},
                    "ipAddress": f"10.0.0.{worker}",
                    "port": 8470,
                }
                for worker in range(workers)
            ],
            "port": free_port(),
        }
        for worker in range(workers):
            self.home(node, worker).mkdir(parents=True)
        self.write("nodes", name, node)

    def environment(self, node, worker):
        """Returns a worker's environment, by which JAX finds the others as under Open MPI."""
        return {
            "HOME": str(self.home(node, worker)),
            "PATH": f"{pathlib.Path(__file__).parent / 'worker_bin'}:/usr/bin:/bin",
            "STAND_IN": str(self.folder),
            "STAND_IN_NODE": f"{self.folder}:{node['id']}",
            "STAND_IN_HOST": f"t1v-n-{node['id']}-w-{worker}",
            "STAND_IN_PYTHON": os.environ["STAND_IN_PYTHON"],
            "OMPI_MCA_orte_hnp_uri": f"{(node['port'] - FIRST_PORT) << 12}.0;tcp://127.0.0.1:1",
            "OMPI_COMM_WORLD_SIZE": str(len(node["networkEndpoints"])),
            "OMPI_COMM_WORLD_RANK": str(worker),
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            # Repositories of a host that is not there are in this folder.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.folder}/git/.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://stand-in.example/",
            "COPY_SECONDS": "0.2",
        }

    def delete_node(self, name):
        self.kill(name)
        self.remove("nodes", name)

    def preempt(self, name):
        """Takes a node away: no process of its workers lives on."""
        self.set_state(name, "PREEMPTED")
        if queued := self.read("queued", name):
            queued["state"] = {"state": "SUSPENDED", "stateInitiator": "SERVICE"}
            self.write("queued", name, queued)
        self.kill(name)

    def set_state(self, name, state, health="HEALTHY"):
        with self.locked():
            node = self.read("nodes", name)
            self.write("nodes", name, {**node, "state": state, "health": health})

    def processes(self, name=None):
        """The processes on the workers of a node, or of all that there ever were."""
        marker = f"STAND_IN_NODE={self.folder}:".encode()
        if name is not None:
            marker += self.read("nodes", name)["id"].encode() + b"\0"
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marker in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def kill(self, name=None):
        deadline = time.monotonic() + 10
        while found := self.processes(name):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self):
        """Ends all that runs on any worker, also of nodes that are gone."""
        self.kill()
        shutil.rmtree(self.folder / "workers")


def free_port():
    """One that is free now, of those that JAX may be told by Open MPI's variables."""
    for port in range(FIRST_PORT + 1, 1 << 16):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
