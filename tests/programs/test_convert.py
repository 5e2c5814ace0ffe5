"""The program that converts weights."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from effnetv2_jax.models import create_model
from effnetv2_jax.weights import save_weights


def convert(*flags):
    command = [sys.executable, "-m", "effnetv2_jax.convert", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def content(path):
    """Returns the tensors and the metadata of a safetensors file."""
    with safetensors.safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: (x.shape, x.tobytes()) for name, x in tensors.items()}, file.metadata()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    model = create_model("efficientnetv2-tiny", num_classes=10, padding="symmetric")
    save_weights(model, folder / "a.safetensors", naming="timm")
    return folder


def test_what_a_network_is_and_how_it_was_trained_is_said(folder):
    result = convert(f"--from={folder}/a.safetensors", f"--to={folder}/orbax")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "efficientnetv2-tiny with 10 classes, 65 tensors, 18,220 numbers, from efficientnetv2-tiny",
        "padding symmetric, bn_epsilon 0.001, preprocessing v2, 32 px, as their description says "
        "(--architecture and --preprocessing change this)",
        f"written to {folder}/orbax",
    ]
    back = convert(f"--from={folder}/orbax", f"--to={folder}/b.safetensors", "--naming=timm")
    assert back.stdout.endswith(
        f"written to {folder}/b.safetensors in timm's names, but timm has no network just like it\n"
    )
    assert content(folder / "b.safetensors") == content(folder / "a.safetensors")


def test_tensors_beside_the_network_are_said(folder, tmp_path):
    tensors = safetensors.numpy.load_file(folder / "a.safetensors")
    width = len(tensors["bn2.weight"])
    head = {"head.weight": np.ones((3, width), np.float32), "head.bias": np.ones(3, np.float32)}
    backbone = {f"net.{x}": a for x, a in tensors.items() if not x.startswith("classifier")}
    safetensors.numpy.save_file(backbone | head, tmp_path / "x.safetensors")
    start = (
        f"--from={tmp_path}/x.safetensors",
        f"--to={tmp_path}/y.safetensors",
        "--architecture=efficientnetv2_s",
    )
    result = convert(*start)
    assert "\nnot converted: head.bias, head.weight (no part of the network" in result.stdout
    result = convert(*start, "--classifier=head", "--overwrite")
    assert result.stdout.startswith("efficientnetv2-tiny with 3 classes, 65 tensors")


def test_what_was_assumed_is_said_and_what_is_not_known_is_asked(folder):
    path = folder / "efficientnet_best.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(folder / "a.safetensors"), path)
    result = convert(f"--from={path}", f"--to={folder}/asked.safetensors")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pads as in TensorFlow or as in PyTorch: give timm's name of it" in result.stderr
    assert not (folder / "asked.safetensors").exists()
    flag = "--architecture=tf_efficientnet_b0.ap_in1k"
    result = convert(f"--from={path}", f"--to={folder}/asked.safetensors", flag)
    assert result.stdout.splitlines()[1] == (
        "padding same, bn_epsilon 0.001, preprocessing torch,mean=127.5,std=127.5, 224 px, as "
        "timm's tf_efficientnet_b0.ap_in1k, as you say (--architecture and --preprocessing "
        "change this)"
    )


def test_a_mistake_is_one_sentence(folder):
    result = convert(
        f"--from={folder}/a.safetensors", f"--to={folder}/c", "--model=efficientnetv2-s"
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "tensor conv_stem.weight has shape (8, 3, 3, 3) there and" in result.stderr
    assert result.stderr.endswith(
        "it looks like efficientnetv2-tiny: name that model (--model, or --config.model.name in "
        "training)\n"
    )
    assert not (folder / "c").exists()


def test_timms_names_make_a_folder_for_the_hub(tmp_path):
    save_weights(create_model("deit-ti", num_classes=2), tmp_path / "a.safetensors")
    arguments = (f"--from={tmp_path}/a.safetensors", f"--to={tmp_path}/hub", "--naming=timm")
    result = convert(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("/hub in timm's names, for timm's deit_tiny_patch16_224\n")
    assert (tmp_path / "hub" / "config.json").is_file()
    result = convert(*arguments, "--overwrite")
    assert result.returncode == 2
    assert "--overwrite replaces only a file" in result.stderr
