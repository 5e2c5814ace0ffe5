"""Converts weights: ``python -m effnetv2_jax.convert --from=PATH_OR_NAME --to=PATH``.

From anything that ``load_weights`` reads, to safetensors in our names or timm's (a path that ends
in .safetensors) or to an Orbax folder (any other).
"""

from absl import flags

from effnetv2_jax.runtime import cli
from effnetv2_jax.weights import read_weights, save_weights
from effnetv2_jax.weights.read import ADOPTED
from effnetv2_jax.weights.save import in_timm

MODEL = flags.DEFINE_string("model", None, "That they must fit; by default the one they do.")
FROM = flags.DEFINE_string(
    "from",
    None,
    "File, folder, prefix of a checkpoint, or published name.",
    required=True,
)
TO = flags.DEFINE_string(
    "to", None, "A path ending in .safetensors, or a folder for Orbax.", required=True
)
NAMING = flags.DEFINE_enum("naming", "effnetv2_jax", ["effnetv2_jax", "timm"], "Of the tensors.")
EMA = flags.DEFINE_bool("ema", True, "Take the moving averages where there are two.")
ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "timm's name of the network, where the file does not tell it."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that is there.")


def main() -> None:
    weights = read_weights(FROM.value, MODEL.value, ema=EMA.value, architecture=ARCHITECTURE.value)
    save_weights(weights, TO.value, naming=NAMING.value, overwrite=OVERWRITE.value)
    spec = weights.spec
    numbers = sum(x.size for x in weights.tensors.values())
    print(
        f"{spec.name} with {weights.num_classes} classes, {len(weights.tensors)} tensors, "
        f"{numbers:,} numbers, from {weights.origin}"
    )
    computes = (name for name in ADOPTED[type(spec)] if not name.endswith("_size"))
    print(
        ", ".join(f"{name} {getattr(spec, name)}" for name in computes),
        f"{spec.eval_size} px",
        sep=", ",
    )
    if NAMING.value == "timm":
        name = in_timm(spec)
        print(
            f"written to {TO.value} in timm's names, "
            + (f"for timm's {name}" if name else "of which timm has no network just like it")
        )
    else:
        print(f"written to {TO.value}")


if __name__ == "__main__":
    cli.run(main)
