"""gcloud compute tpus tpu-vm … and queued-resources …, with a folder for a cloud.

Flags, fields, states and messages as those of the real one, whose reference and source they were
read in; flags that it does not have are refused. STAND_IN names the folder.
"""

import json
import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from cloud import Cloud

_EVERYWHERE = {"--zone", "--project", "--quiet", "--format"}
_MAKING = {"--accelerator-type", "--spot", "--reserved", "--network", "--labels"}
_REACHING = {"--worker", "--tunnel-through-iap"}
FLAGS = {
    ("tpu-vm", "create"): {*_MAKING, "--version"},
    ("tpu-vm", "describe"): set(),
    ("tpu-vm", "list"): set(),
    ("tpu-vm", "delete"): set(),
    ("tpu-vm", "ssh"): {*_REACHING, "--command"},
    ("tpu-vm", "scp"): {*_REACHING, "--recurse"},
    ("queued-resources", "create"): {
        *(*_MAKING, "--node-id", "--runtime-version", "--valid-until-duration")
    },
    ("queued-resources", "describe"): set(),
    ("queued-resources", "list"): set(),
    ("queued-resources", "delete"): {"--force"},
}
# What a queued resource goes through, a step at every look.
_QUEUE = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


class Refused(Exception):
    pass


class Call:
    """One call: its command, flags and other arguments."""

    def __init__(self, arguments, cloud):
        if arguments[:2] != ["compute", "tpus"] or tuple(arguments[2:4]) not in FLAGS:
            raise SystemExit(f"ERROR: (gcloud) Invalid choice: {arguments!r}.")
        self.group, self.verb = arguments[2:4]
        self.cloud = cloud
        self.words, self.flags = [], {}
        for argument in arguments[4:]:
            name, _, value = argument.partition("=")
            if not argument.startswith("--"):
                self.words.append(argument)
            elif name in FLAGS[self.group, self.verb] | _EVERYWHERE:
                self.flags[name] = value
            else:
                raise Refused(f"unrecognized arguments: {name}")
        if "--zone" not in self.flags:
            raise Refused("argument --zone: Must be specified.")
        if "--quiet" not in self.flags:
            raise Refused("it would ask, and nobody is there to answer")

    @property
    def kind(self):
        return "nodes" if self.group == "tpu-vm" else "queued"

    def path(self, name):
        collection = "nodes" if self.group == "tpu-vm" else "queuedResources"
        return f"projects/p/locations/{self.flags['--zone']}/{collection}/{name}"

    def get(self, name):
        found = self.cloud.read(self.kind, name)
        if found is None:
            raise Refused(f"NOT_FOUND: Resource '{self.path(name)}' was not found")
        return found

    def method(self):
        # A command of both kinds has one method, another one of its own for each.
        return getattr(self, f"{self.verb}_{self.kind}", None) or getattr(self, self.verb)

    def describe(self):
        (name,) = self.words
        print(json.dumps(self.get(name)))

    def list(self):
        print(json.dumps([self.get(name) for name in self.cloud.names(self.kind)]))

    def _description(self, version):
        return {
            "acceleratorType": self.flags["--accelerator-type"],
            "runtimeVersion": version,
            "schedulingConfig": {"spot": True} if "--spot" in self.flags else {},
            "apiVersion": "V2",
        }

    def _check_new(self, name):
        if self.cloud.read(self.kind, name):
            raise Refused(f"ALREADY_EXISTS: Resource '{self.path(name)}' already exists")

    def create_nodes(self):
        (name,) = self.words
        self._check_new(name)
        print(f"Create request issued for: [{name}]", file=sys.stderr)
        description = {"name": self.path(name), **self._description(self.flags["--version"])}
        self.cloud.create_node(name, description, workers_of(description))

    def create_queued(self):
        (name,) = self.words
        self._check_new(name)
        node = self._description(self.flags["--runtime-version"])
        spec = {"node": node, "nodeId": self.flags["--node-id"], "parent": "projects/p"}
        request = {
            "name": self.path(name),
            "state": {"state": _QUEUE[0]},
            "tpu": {"nodeSpec": [spec]},
        }
        self.cloud.write("queued", name, request)

    def describe_queued(self):
        (name,) = self.words
        request = self.get(name)
        state = request["state"]["state"]
        if state in _QUEUE[:-1]:
            request["state"] = {"state": _QUEUE[_QUEUE.index(state) + 1]}
            if request["state"]["state"] == "ACTIVE":
                (spec,) = request["tpu"]["nodeSpec"]
                node = {"name": spec["nodeId"], **spec["node"], "queuedResource": request["name"]}
                self.cloud.create_node(spec["nodeId"], node, workers_of(node))
            self.cloud.write("queued", name, request)
        print(json.dumps(request))

    def delete_nodes(self):
        (name,) = self.words
        self.get(name)
        self.cloud.delete_node(name)
        print(f"Deleted tpu [{name}].", file=sys.stderr)

    def delete_queued(self):
        (name,) = self.words
        state = self.get(name)["state"]["state"]
        if "--force" not in self.flags and state not in (*_QUEUE[:2], "SUSPENDED", "FAILED"):
            raise Refused(f"FAILED_PRECONDITION: not supported when state is {state}")
        if self.cloud.read("nodes", name):
            self.cloud.delete_node(name)
        self.cloud.remove("queued", name)

    def _workers(self, name):
        """(node, worker) of all that are asked for."""
        node = self.get(name)
        if node["state"] != "READY":
            raise Refused(f"the TPU is in state {node['state']} and cannot be used")
        numbers = list(range(len(node["networkEndpoints"])))
        wanted = self.flags.get("--worker", "0")
        return [(node, i) for i in numbers if wanted in ("all", str(i))]

    def ssh(self):
        (name,) = self.words
        workers = self._workers(name)
        if len(workers) > 1 and not self.flags.get("--command"):
            raise Refused("cannot target multiple workers without the `--command` flag.")
        print(f"Using ssh batch size of {len(workers)}.", file=sys.stderr)
        return self._on_all(workers, lambda *worker: ["bash", "-c", self.flags["--command"]])

    def scp(self):
        name = next(word for word in self.words if ":" in word).partition(":")[0]
        workers = self._workers(name)
        if ":" not in self.words[-1] and len(workers) > 1:
            raise Refused("cannot target multiple workers while copying files to client.")

        def copy(node, worker):
            paths = []
            for path in self.words:
                host, colon, rest = path.partition(":")
                home = self.cloud.home(node, worker)
                paths.append(str(home / rest.removeprefix("~/")) if colon else host)
            recursive = ["--recursive"] if "--recurse" in self.flags else []
            return ["cp", *recursive, *paths]

        return self._on_all(workers, copy)

    def _on_all(self, workers, command):
        codes = [0] * len(workers)

        def on_one(place, node, worker):
            codes[place] = subprocess.run(
                command(node, worker),
                env=self.cloud.environment(node, worker),
                cwd=self.cloud.home(node, worker),
                stdin=subprocess.DEVNULL,
            ).returncode
            if codes[place]:
                print(
                    f"##### Command execution on worker {worker} failed with exit status "
                    f"{codes[place]}. Continuing.",
                    file=sys.stderr,
                )

        threads = [
            threading.Thread(target=on_one, args=(place, node, worker))
            for place, (node, worker) in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return next((code if code > 0 else 255 for code in codes if code), 0)


def workers_of(description):
    """Returns the number of workers of v2 to v4, whose hosts have 8 cores; there are no others."""
    generation, _, cores = description["acceleratorType"].partition("-")
    assert generation in ("v2", "v3", "v4")
    return int(cores) // 8


def main():
    cloud = Cloud(os.environ["STAND_IN"])
    number = cloud.note_call(sys.argv[1:])
    prefix = ".".join(["gcloud", *sys.argv[1:5]])
    try:
        call = Call(sys.argv[1:], cloud)
        if message := cloud.failure(number, call.verb, "before"):
            raise Refused(message)
        code = call.method()() or 0
        if message := cloud.failure(number, call.verb, "after"):
            raise Refused(message)
    except Refused as refused:
        print(f"ERROR: ({prefix}) {refused}", file=sys.stderr)
        return 1
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
