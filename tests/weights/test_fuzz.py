"""Mutated files of every container: each is read, or refused in one sentence, soon.

A process of its own reads them, since a crash of a library would end it. It is told of any attempt
to unpickle or to start a program.
"""

import faulthandler
import io
import json
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile

import numpy as np
import pytest

FILES, SECONDS = 300, 10
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")


@pytest.mark.slow
def test_mutated_files_do_no_harm(tmp_path):
    command = [sys.executable, "-m", "tests.weights.test_fuzz", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["files"] == FILES and not report["faults"], report["faults"]
    # Some changes are only in numbers. Those in a config.json are refused.
    assert report["read"] > 20 and report["refused"] > 100


def main(folder: pathlib.Path) -> None:
    from effnetv2_jax.runtime.errors import UsageError
    from effnetv2_jax.weights import read_weights
    from effnetv2_jax.weights.containers.files import open_tensors

    rng = random.Random(0)
    originals = make_originals(folder / "originals")
    for path in originals.values():  # the libraries are imported before the hook
        read_quietly(read_weights, path, UsageError)
    called: list[str] = []
    sys.addaudithook(lambda event, _: called.append(event) if event in FORBIDDEN else None)
    counts, faults = {"read": 0, "refused": 0}, []
    for number in range(FILES):
        kind = list(originals)[number % len(originals)]
        path = mutate(originals[kind], folder / f"{number}", rng)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        print(number, kind, file=sys.stderr, flush=True)
        called.clear()
        start = time.monotonic()
        try:
            with open_tensors(path) as tensors:
                for name, shape in tensors.shapes.items():
                    if np.prod(shape) < 1e6:
                        tensors.read(name)
            counts["read"] += 1
            read_weights(str(path))
        except UsageError as error:
            counts["refused"] += 1  # after it was read too, if it is no network
            if "\n" in str(error).strip():
                faults.append(f"{number} {kind}: several lines: {error}")
        except Exception:
            faults.append(f"{number} {kind}: {traceback.format_exc()[-1500:]}")
        if time.monotonic() - start > SECONDS or called:
            faults.append(f"{number} {kind}: {time.monotonic() - start:.0f} s, {called}")
        shutil.rmtree(folder / f"{number}")
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"files": FILES, "faults": faults} | counts))


def read_quietly(read, path, error) -> None:
    try:
        read(str(path))
    except error as reason:
        print(f"{path.name}: {reason}", file=sys.stderr)


def make_originals(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes a small file of every kind. Most hold the tiny network, the others what they can."""
    import h5py
    import safetensors.numpy
    import tensorflow as tf
    from flax import serialization

    from effnetv2_jax.weights import save_weights
    from tests.weights.conftest import TIMM, arrays, make_tiny

    folder.mkdir()
    tiny = make_tiny()
    places = TIMM.places(tiny.spec, 10)
    timm = {places[x].name: places[x].to_theirs(a) for x, a in arrays(tiny).items()}
    name = "tf_efficientnetv2_s"
    save_weights(tiny, folder / "ours.safetensors")
    save_weights(tiny, folder / "orbax")
    (folder / "hub").mkdir()
    safetensors.numpy.save_file(timm, folder / "hub" / "model.safetensors")
    (folder / "hub" / "config.json").write_text(json.dumps({"architecture": name}))
    np.savez(folder / "x.npz", **timm)
    (folder / "x.msgpack").write_bytes(serialization.msgpack_serialize(timm))
    for file in ("torch_zip.pth", "torch_legacy.pth", "torch_nested.pth"):
        shutil.copy(GOLDEN / file, folder / file)
    (folder / "evil.pth").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    with h5py.File(folder / "x.h5", "w") as file:
        for i, (tensor, array) in enumerate(timm.items()):
            file[f"layers/conv2d_{i}/vars/0"], file[f"a/b{i}/{tensor}:0"] = array, array
    with zipfile.ZipFile(folder / "x.keras", "w") as archive:
        archive.write(folder / "x.h5", "model.weights.h5")
    (folder / "tf").mkdir()
    variables = {f"v{i}": tf.Variable(array) for i, array in enumerate(timm.values())}
    checkpoint = tf.train.Checkpoint(**variables)
    checkpoint.write(str(folder / "tf" / "model"))
    with tarfile.open(folder / "x.tgz", "w:gz") as archive:
        archive.add(folder / "tf", "tf")
    return {path.name: path for path in sorted(folder.iterdir())}


class Evil:
    """An object whose pickle starts a program."""

    def __reduce__(self):
        return subprocess.call, (["true"],)


def mutate(original: pathlib.Path, folder: pathlib.Path, rng: random.Random) -> pathlib.Path:
    """Copies a file or folder and changes one file, or one inside an archive with right sums."""
    folder.mkdir()
    path = folder / original.name
    if original.is_dir():
        shutil.copytree(original, path)
        victim = rng.choice(sorted(x for x in path.rglob("*") if x.is_file()))
    else:
        shutil.copy(original, path)
        victim = path
    if zipfile.is_zipfile(victim) and rng.random() < 0.7:
        with zipfile.ZipFile(victim) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        pickles = [name for name in files if name.endswith("data.pkl")]
        chosen = pickles[0] if pickles and rng.random() < 0.7 else rng.choice(sorted(files))
        files[chosen] = changed(files[chosen], rng)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        victim.write_bytes(buffer.getvalue())
    else:
        victim.write_bytes(changed(victim.read_bytes(), rng))
    return path


def changed(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doubles or fills bytes, mostly near the beginning, where the structure is."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not out:
            break
        near = min(len(out), rng.choice((16, 256, 4096, len(out))))
        place, length = rng.randrange(near), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.choice(("flip", "bytes", "fill", "cut", "double", "end")):
            case "flip":
                out[place] ^= 1 << rng.randrange(8)
            case "bytes":
                out[place : place + length] = rng.randbytes(length)
            case "fill":
                out[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
            case "cut":
                del out[place : place + length]
            case "double":
                out[place:place] = out[place : place + length]
            case "end":
                del out[rng.randrange(len(out)) :]
    return bytes(out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
