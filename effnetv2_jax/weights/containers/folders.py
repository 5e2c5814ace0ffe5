"""Our own folders, which Orbax writes: the checkpoints of a run, and weights on their own."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from effnetv2_jax.models.registry import family_of, get_spec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.runtime.files import plain_path, unnamed
from effnetv2_jax.weights import description
from effnetv2_jax.weights.containers.tensors import Tensors
from effnetv2_jax.weights.description import Description

# The items of a folder of weights.
_WEIGHTS, _ABOUT = "weights", "about"


def holds_run(folder: pathlib.Path) -> bool:
    """Returns True if a folder is the workdir of a run."""
    return (folder / "checkpoints").is_dir()


def holds_weights(folder: pathlib.Path) -> bool:
    """Returns True if ``write`` wrote a folder."""
    return (folder / _WEIGHTS).is_dir() and (folder / _ABOUT).is_dir()


@contextlib.contextmanager
def open_run(workdir: pathlib.Path, ema: bool) -> Iterator[Tensors]:
    """Opens the weights in the newest undamaged checkpoint of a run.

    Args:
        workdir: The run's workdir, in which nothing is changed.
        ema: Takes the averaged weights and batch statistics, which evaluations use.

    Raises:
        UsageError: If there is no such checkpoint.
    """
    from effnetv2_jax.training.survival import checkpoint

    step = checkpoint.newest_good(workdir)
    if step is None:
        raise UsageError(f"workdir {str(workdir)!r} holds no checkpoint that is undamaged")
    record = checkpoint.read_record(workdir, step)
    assert record is not None  # as there is such a step
    parts = ("ema_params", "ema_batch_stats") if ema else ("params", "batch_stats")
    state = checkpoint.read_parts(workdir, step, parts)
    config, names = record["config"], record["class_names"]
    spec = get_spec(config["model"]["name"])
    trained = {name: config["model"].get(name) for name in family_of(spec).as_trained}
    about = Description(
        spec=dataclasses.replace(
            spec,
            preprocessing=config["data"]["preprocessing"] or spec.preprocessing,
            eval_size=config["eval_image_size"],
            **{name: value for name, value in trained.items() if value is not None},
        ),
        num_classes=len(names),
        class_names=tuple(names),
        origin=f"a run of {spec.name} on {config['data']['name']}, step {step}"
        + (", moving average" if ema else ""),
        exif_orientation=config["data"].get("exif_orientation", False),
    )
    yield _tensors(workdir, state, about.to_json())


@contextlib.contextmanager
def open_weights(folder: pathlib.Path) -> Iterator[Tensors]:
    """Opens a folder that ``write`` wrote.

    Raises:
        UsageError: If it is damaged.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    with plain_path(folder) as plain:
        path = epath.Path(plain)
        try:
            handler = ocp.PyTreeCheckpointHandler()
            tree = handler.metadata(path / _WEIGHTS).tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
            tree = handler.restore(path / _WEIGHTS, args=arguments)
            about = ocp.JsonCheckpointHandler().restore(path / _ABOUT)[description.KEY]
        except Exception as error:  # Orbax, TensorStore and the system share no base class.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UsageError(f"the weights in {str(folder)!r} cannot be read: {reason}") from error
    yield _tensors(folder, ocp.tree.to_flat_dict(tree, sep="/"), about)


def write(folder: pathlib.Path, tensors: Mapping[str, np.ndarray], about: Description) -> None:
    """Writes a folder that holds ``{"params": …, "batch_stats": …}``, and reads it back.

    The two are nested dictionaries as NNX and Linen have them, which
    ``ocp.PyTreeCheckpointer().restore(folder / "weights")`` reads too.

    Args:
        folder: The folder to make, an absolute path. It appears whole, or not at all.
        tensors: The tensors by our names.
        about: The description to write beside them.

    Raises:
        OSError: If it cannot be written, or is not what was written when it is read back.
    """
    import orbax.checkpoint as ocp

    statistics = ("mean", "var")
    flat = {
        f"{'batch_stats' if name.endswith(statistics) else 'params'}/{name.replace('.', '/')}": x
        for name, x in tensors.items()
    }
    items: dict[str, Any] = {
        _WEIGHTS: ocp.args.PyTreeSave(ocp.tree.from_flat_dict(flat, sep="/")),
        _ABOUT: ocp.args.JsonSave({description.KEY: about.to_json()}),
    }
    handlers = {
        # Weights are nearly random and do not compress.
        _WEIGHTS: ocp.PyTreeCheckpointHandler(use_compression=False),
        _ABOUT: ocp.JsonCheckpointHandler(),
    }
    with plain_path(folder.parent) as plain:
        # Its own name may be one that Orbax misreads.
        temporary = unnamed(plain / "weights")
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
                checkpointer.save(temporary, args=ocp.args.Composite(**items))
            with open_weights(temporary) as written:
                for name, x in tensors.items():
                    if written.read(name).tobytes() != np.asarray(x).tobytes():
                        raise OSError(f"{name} is not read back as it was written")
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _tensors(path: pathlib.Path, state: Mapping[str, np.ndarray], about: str) -> Tensors:
    """Drops the first part of names such as ``params/stem/conv/kernel``, and joins the rest."""
    arrays = {name.partition("/")[2].replace("/", "."): x for name, x in state.items()}
    shapes = {name: tuple(x.shape) for name, x in arrays.items()}
    return Tensors(path, shapes, arrays.__getitem__, {description.KEY: about})
