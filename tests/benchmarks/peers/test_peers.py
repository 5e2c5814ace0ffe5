"""Side by side with others: contenders that are fakes, and ours; others', where it is slow."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from effnetv2_jax.benchmarks.peers import contenders as peer_contenders
from effnetv2_jax.benchmarks.peers import race as peer_race
from effnetv2_jax.benchmarks.peers.contenders import CONTENDERS, OURS, Contender
from effnetv2_jax.benchmarks.peers.race import Entry, Result, Task, race
from effnetv2_jax.benchmarks.peers.table import as_json, as_markdown
from effnetv2_jax.benchmarks.timing.measure import Timing
from effnetv2_jax.models import list_models
from tests.benchmarks.commands import refusals, run

FAKE = pathlib.Path(__file__).with_name("fake_contender.py")
TASK = Task("efficientnetv2-tiny", image_size=16, batch_size=8, dtype="float32", threads=1)
WHATS = ("training", "inference")


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(peer_race, "SETTLE_SECONDS", 0)


def fake(tmp_path, name, *, models=None, file=FAKE, **options):
    options = {"log": str(tmp_path / "log"), "name": name, **options}
    return Contender(name.upper(), file, models, "it sleeps", "it naps", {}, options)


def run_race(*contenders, whats=("training",), steps=1, pythons=None, **kwargs):
    named = {contender.options["name"]: contender for contender in contenders}
    here = dict.fromkeys(named, sys.executable)
    return race(named, TASK, whats=whats, steps=steps, pythons=here | (pythons or {}), **kwargs)


def table(entries, **kwargs):
    kwargs = {"whats": WHATS, "repeats": 5, "environment": {}} | kwargs
    return as_markdown(TASK, entries, **kwargs)


def entry(title, *rest):
    return Entry(Contender(title, FAKE, None, "trains", "infers"), *rest)


def result(*seconds, idle_share=0.0):
    return Result("jit", 2.5, 4, Timing(seconds), idle_share)


def test_contenders_take_turns_one_at_a_time(tmp_path):
    entries = run_race(fake(tmp_path, "a"), fake(tmp_path, "b"), repeats=5, steps=3)
    events = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [event[2] for event in events] == ["start", "end"] * (len(events) // 2)
    turns = [event[1] for event in events if event[2:] == ["start", "fast", "3"]]
    assert turns == ["b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]
    # Before every turn a step that does not count, and before all of them the first step.
    assert [event[1] for event in events if event[2:] == ["start", "fast", "1"]][2:] == turns
    for entry in entries.values():
        assert len(entry.results["training"].timing.seconds) == 5
        assert entry.results["training"].timing.low >= 0.005


def test_the_fastest_way_is_taken_and_a_turn_is_about_a_second(tmp_path):
    contender = fake(tmp_path, "a", ways=("slow", "fast"))
    entries = run_race(contender, steps=None, repeats=1)
    found = entries["a"].results["training"]
    assert found.way == "fast"
    assert 100 < found.steps <= 200  # of 5 ms


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        ("prepare training", "RuntimeError: no training | at all"),
        ("turn", "ValueError: tired"),
        ("die", "its process ended (SIGKILL): out of luck"),
    ],
)
def test_one_that_fails_is_a_row(tmp_path, fail, reason):
    entries = run_race(fake(tmp_path, "a"), fake(tmp_path, "b", fail=fail), fake(tmp_path, "c"))
    assert entries["b"].reasons == {"training": reason} and not entries["b"].results
    assert all(len(entries[name].results["training"].timing.seconds) == 5 for name in "ac")


def test_one_that_fails_at_training_may_infer_unless_it_is_dead(tmp_path):
    contenders = fake(tmp_path, "a", fail="prepare training"), fake(tmp_path, "b", fail="die")
    entries = run_race(*contenders, whats=WHATS, repeats=2)
    assert list(entries["a"].reasons) == ["training"]
    assert list(entries["a"].results) == ["inference"]
    assert entries["b"].reasons == dict.fromkeys(WHATS, "its process ended (SIGKILL): out of luck")


def test_one_that_cannot_start_says_why(tmp_path):
    other, lacking = tmp_path / "other.py", tmp_path / "lacking.py"
    other.write_text(FAKE.read_text().replace('"cpu"', '"gpu"'))
    lacking.write_text("import json, no_such_library")
    entries = run_race(
        fake(tmp_path, "ours"),
        fake(tmp_path, "library", file=lacking),
        fake(tmp_path, "model", models={"efficientnetv2-b0": "B0"}),
        fake(tmp_path, "python"),
        fake(tmp_path, "platform", file=other),
        pythons={"python": str(tmp_path / "nowhere")},
        repeats=1,
    )
    reasons = {name: entry.reasons.get("training") for name, entry in entries.items()}
    assert reasons == {
        "ours": None,
        "library": "no_such_library is not installed",
        "model": "it has no efficientnetv2-tiny",
        "python": f"{tmp_path / 'nowhere'} does not start: No such file or directory",
        "platform": "it finds no cpu here, only a gpu",
    }


def test_who_runs_while_others_do_is_told(tmp_path):
    entries = run_race(
        fake(tmp_path, "a", spins=True), fake(tmp_path, "b"), steps=40, whats=("training",)
    )
    assert entries["a"].results["training"].idle_share > 0.2
    assert entries["b"].results["training"].idle_share < 0.02
    text = table(entries, whats=("training",))
    assert text.count("Beware") == 1 and "Beware: A, training: its process took" in text


def test_the_table():
    facts = {"platform": "cpu", "device": "1 × CPU", "versions": {"jax": "1.0"}}
    entries = {
        OURS: entry("Ours", facts, {"training": result(0.1, 0.2, 0.4)}, {"inference": "none|"}),
        "b": entry("B", facts, {what: result(0.1) for what in WHATS}, {}),
        "c": entry("C", {}, {}, dict.fromkeys(WHATS, "no C")),
    }
    heading, device, versions, _, head, _, ours, b, c, _, *notes = table(entries).splitlines()
    assert heading == "efficientnetv2-tiny, 16 px, batch 8, float32"
    assert device.startswith("1 × CPU, 1 thread each; medians of 5 turns")
    assert versions == "jax 1.0"

    def cells(line):
        return [cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]]

    kinds = ("images/s", "ours ÷ it", "first step s")
    assert cells(head)[1:] == [
        f"training {kinds[0]}",
        *kinds[1:],
        f"inference {kinds[0]}",
        *kinds[1:],
    ]
    assert cells(ours) == ["Ours", "40 (20–80)", "1.00", "2.5", "not run: none/", "–", "–"]
    assert cells(b) == ["B", "80 (80–80)", "0.50", "2.5", "80 (80–80)", "–", "2.5"]
    assert cells(c) == ["C", "not run: no C", "–", "–", "–", "–", "–"]
    assert notes == [
        "- Ours: training: trains (training by jit).",
        "- B: training: trains; inference: infers (training by jit, inference by jit).",
    ]


def test_json_has_all_that_was_found():
    facts = {"platform": "cpu", "device": "1 × CPU", "versions": {"jax": "1.0"}}
    entries = {
        OURS: entry("Ours", facts, {"training": result(0.1, 0.2, 0.4)}, {"inference": "no"}),
        "b": entry("B", facts, {what: result(0.1, idle_share=0.01) for what in WHATS}, {}),
    }
    found = json.loads(json.dumps(as_json(TASK, entries, WHATS)))
    assert found["model"] == "efficientnetv2-tiny" and found["threads"] == 1
    ours, b = found["contenders"].values()
    assert ours["inference"] == {"not_run": "no"}
    assert ours["training"]["images_per_second"] == {"median": 40, "low": 20, "high": 80}
    assert b["versions"] == {"jax": "1.0"}
    assert b["inference"]["ours_over_theirs"] is None
    assert b["training"] == {
        "images_per_second": {"median": 80, "low": 80, "high": 80},
        "ours_over_theirs": 0.5,
        "first_step_seconds": 2.5,
        "step_seconds": [0.1],
        "steps_a_turn": 4,
        "way": "jit",
        "idle_share": 0.01,
    }


def test_all_names_are_ours():
    for contender in CONTENDERS.values():
        assert set(contender.models or ()) <= set(list_models())
    assert CONTENDERS["keras-jax"].name_of("efficientnetv2-b0") == "EfficientNetV2B0"
    assert CONTENDERS["timm-eager"].name_of("efficientnetv2-b0") == "tf_efficientnetv2_b0"
    assert CONTENDERS[OURS].name_of("vit-b-16") == "vit-b-16"
    assert peer_contenders.PEERS == ("keras-tensorflow", "keras-jax", "timm-eager", "timm-compiled")


REFUSED = [
    ({"peers": "timm-egaer"}, "unknown peer 'timm-egaer': did you mean timm-eager"),
    ({"peers": OURS}, "unknown peer 'ours': allowed are keras-jax, keras-tensorflow, timm-"),
    ({"what": "train"}, "unknown thing to time 'train': did you mean training?"),
    ({"what": ""}, "--what must name at least one of training, inference"),
    ({"model": "efficientnetv2-x"}, "unknown model 'efficientnetv2-x'"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"threads": "1000"}, "--threads must be from 1 to "),
    ({"torch_python": "/nowhere"}, "--torch_python must be a program, got '/nowhere'"),
]

STANDS_FOR_TORCH = """
defined = []
dtype = object
class library:
    class Library:
        def __init__(self, *arguments):
            assert compiled_loads is False, "its operations are registered already"
        def define(self, schema):
            defined.append(schema.partition("(")[0])
class cuda:
    is_available = staticmethod(lambda: False)
"""


@pytest.mark.parametrize("loads", [True, False])
def test_timm_is_imported_with_and_without_torchvisions_compiled_operations(tmp_path, loads):
    """Its schemas are missing beside a torch for the CPU, and must not be defined twice."""
    files = {
        "torch/__init__.py": f"compiled_loads = {loads}{STANDS_FOR_TORCH}",
        "torch/_dynamo.py": "",
        "torchvision.py": "import torch\n"
        "if not torch.compiled_loads and 'nms' not in torch.defined:\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n",
        "timm.py": "import torchvision\n__version__ = '1'\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    program = (
        "import runpy, torch\n"
        f"names = runpy.run_path({str(CONTENDERS['timm-eager'].file)!r})\n"
        "print(names['timm'].__version__, len(torch.defined))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["1", "0" if loads else "14"], ran.stderr


def test_what_cannot_be_used_is_named():
    sentences = refusals("peers.peers", [values for values, _ in REFUSED])
    for sentence, (_, message) in zip(sentences, REFUSED, strict=True):
        assert message in sentence


def run_command(*arguments):
    # Neither the program nor what it times of ours needs any of these.
    without = ("tensorflow", "tensorflow_datasets", "clu", "keras", "torch", "timm")
    xla_flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device" not in f)
    size = ("--image_size=16", "--batch_size=2", "--json", "--steps=1")
    done = run("peers", *size, *arguments, without=without, XLA_FLAGS=xla_flags)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["runs"]
    return found["contenders"]


# A training step takes three times as long to compile, and `step` times one in test_benchmarks.
@pytest.mark.parametrize("what", [pytest.param("training", marks=pytest.mark.slow), "inference"])
def test_ours_is_timed_and_who_has_no_such_model_is_told(what):
    found = run_command("--model=efficientnetv2-tiny", "--peers=keras-jax", f"--what={what}")
    ours, keras = found.values()
    assert ours[what]["images_per_second"]["median"] > 0
    assert ours[what]["ours_over_theirs"] == 1
    assert len(ours[what]["step_seconds"]) == 5
    assert keras[what] == {"not_run": "it has no efficientnetv2-tiny"}
    assert set(ours["versions"]) == {"jax", "jaxlib", "flax"}


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["keras-tensorflow", "keras-jax"])
def test_keras_is_timed(peer):
    found = run_command(f"--peers={peer}", "--image_size=32")
    for what in WHATS:
        assert found[peer][what]["ours_over_theirs"] > 0
