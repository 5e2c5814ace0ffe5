"""A model file for trainers in the style of big_vision: ``Model`` makes a Linen module, ``load``
reads its parameters.

    config.model_name = "big_vision_model"
    config.model = dict(variant="efficientnetv2-s")

Such a trainer knows only parameters. So batch norm stays as the weights have it: its statistics
are among the parameters, have no gradients, and should have no weight decay.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from effnetv2_jax import create_model, load_weights
from effnetv2_jax.models import abstract_model

VARIABLES = (nnx.Param, nnx.BatchStat)


class _Model(nn.Module):
    num_classes: int
    variant: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, dict]:
        def init(key):
            model = create_model(self.variant, num_classes=self.num_classes, rngs=nnx.Rngs(key))
            return nnx.to_pure_dict(nnx.state(model, VARIABLES))

        numbers = self.param("network", init)
        model = abstract_model(self.variant, num_classes=self.num_classes)
        for kind in VARIABLES:
            state = nnx.state(model, kind)
            flat = {path: _at(numbers, path) for path, _ in nnx.to_flat_state(state)}
            if kind is nnx.BatchStat:
                flat = jax.lax.stop_gradient(flat)
            nnx.update(model, nnx.from_flat_state(flat))
        features = model.features(image)
        logits = model(image)
        return logits, {"logits": logits, **features}


def _at(tree: dict, path: tuple) -> jax.Array:
    for part in path:
        tree = tree[part]
    return tree


def Model(num_classes: int, *, variant: str = "efficientnetv2-s") -> nn.Module:
    return _Model(num_classes=num_classes, variant=variant)


def load(init_params: dict, init_file: str, model_cfg: dict, dont_load: tuple = ()) -> dict:
    """Returns the parameters in a file; the classifier stays if the classes differ."""
    num_classes = init_params["network"]["classifier"]["bias"].shape[0]
    model = create_model(model_cfg["variant"], num_classes=num_classes)
    print(load_weights(model, init_file))
    loaded = nnx.to_pure_dict(nnx.state(model, VARIABLES))
    kept = {name: init_params["network"][name] for name in dont_load}
    return {"network": loaded | kept}


if __name__ == "__main__":
    params = Model(10).init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))["params"]
    print(sum(x.size for x in jax.tree.leaves(params)), "numbers")
