"""Exported networks side by side: a race of one, and values that cannot be used."""

import json

import pytest

from tests.benchmarks.commands import refusals, run

REFUSED = [
    ({"model": "efficientnetv2-x"}, "unknown model 'efficientnetv2-x'"),
    ({"to": "stablehlo,caffe"}, "unknown format 'caffe'"),
    ({"batch_size": "1,x"}, "--batch_size must be numbers from 1 with commas between, got 'x'"),
    ({"torch_python": "/nowhere"}, "--torch_python must be a program, got '/nowhere'"),
]


@pytest.mark.slow
def test_what_cannot_be_used_is_named():
    sentences = refusals("peers.export", [values for values, _ in REFUSED])
    for sentence, (_, expected) in zip(sentences, REFUSED, strict=True):
        assert expected in sentence


@pytest.mark.slow
def test_an_export_is_timed_beside_the_network_and_what_is_missing_has_a_row():
    tiny = ("--model=efficientnetv2-tiny", "--image_size=32", "--steps=1", "--json")
    done = run("export", *tiny, "--batch_size=2", "--to=stablehlo,savedmodel")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["ms"]["2"]
    assert set(found) == {"ours", "stablehlo", "savedmodel", "timm-compiled"}
    assert 0 < found["stablehlo"]["low"] <= found["stablehlo"]["median"]
    assert found["timm-compiled"]["not_run"] == "it has no efficientnetv2-tiny"
