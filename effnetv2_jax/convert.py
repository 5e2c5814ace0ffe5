"""Converts weights: ``python -m effnetv2_jax.convert --from=PATH_OR_NAME --to=PATH``.

It reads everything that ``load_weights`` reads, and fetches what is not here. If the path ends in
.safetensors, it writes a file in our names or timm's. Otherwise it writes a folder: an Orbax folder
in our names, one for the Hugging Face Hub in timm's.
"""

from absl import flags

from effnetv2_jax.models.registry import family_of
from effnetv2_jax.runtime import cli
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import read_weights, save_pretrained, save_weights
from effnetv2_jax.weights.dialects.dialect import OURS, get_dialect
from effnetv2_jax.weights.save import NAMINGS

MODEL = flags.DEFINE_string(
    "model", None, "Model to check the weights against. Inferred from the weights by default."
)
FROM = flags.DEFINE_string(
    "from",
    None,
    "Weights to read: a file, a folder, the prefix of a TensorFlow checkpoint, a published name, "
    "or an address (https://…, hf://OWNER/REPOSITORY).",
    required=True,
)
TO = flags.DEFINE_string(
    "to",
    None,
    "Path to write to: a file if it ends in .safetensors, otherwise a folder, as Orbax has it or, "
    "with timm's names, as the Hugging Face Hub has it.",
    required=True,
)
NAMING = flags.DEFINE_enum("naming", OURS, NAMINGS, "Names of the tensors.")
EMA = flags.DEFINE_bool("ema", True, "Take the moving averages if the weights have both.")
ARCHITECTURE = flags.DEFINE_string(
    "architecture",
    None,
    "timm's name of the network, such as tf_efficientnetv2_s.in1k. By default what the file, its "
    "config.json or its name says.",
)
PREPROCESSING = flags.DEFINE_string(
    "preprocessing",
    None,
    "Images that the weights expect, a name in effnetv2_jax/preprocessing.py. By default those of "
    "the weights' origin.",
)
CLASSIFIER = flags.DEFINE_string(
    "classifier",
    None,
    "Layer that classifies, by its name in the file, if the network is part of another one there.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")


def main() -> None:
    weights = read_weights(
        FROM.value,
        MODEL.value,
        ema=EMA.value,
        architecture=ARCHITECTURE.value,
        preprocessing=PREPROCESSING.value,
        classifier=CLASSIFIER.value,
    )
    if NAMING.value == OURS or TO.value.endswith(".safetensors"):
        save_weights(weights, TO.value, naming=NAMING.value, overwrite=OVERWRITE.value)
    elif OVERWRITE.value:
        raise UsageError("--overwrite replaces only a file, and a folder must not exist")
    else:
        save_pretrained(weights, TO.value)
    spec = weights.spec
    family = family_of(spec)
    numbers = sum(x.size for x in weights.tensors.values())
    print(
        f"{spec.name} with {weights.num_classes} classes, {len(weights.tensors)} tensors, "
        f"{numbers:,} numbers, from {weights.origin}"
    )
    computes = (f"{x} {getattr(spec, x)}" for x in family.adopted if not x.endswith("_size"))
    print(*computes, f"{spec.eval_size} px, {weights.assumed}", sep=", ", end=" ")
    print("(--architecture and --preprocessing change this)")
    if weights.beside:
        print(f"not converted: {', '.join(weights.beside)} ({weights.why_beside})")
    if NAMING.value == OURS:
        print(f"written to {TO.value}")
        return
    name = get_dialect(family, NAMING.value).names.their_model(spec)
    network = f"for timm's {name}" if name else "but timm has no network just like it"
    print(f"written to {TO.value} in timm's names, {network}")


if __name__ == "__main__":
    cli.run(main)
