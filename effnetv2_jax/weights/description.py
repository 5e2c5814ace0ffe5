"""What goes along with weights that we write: the network they are for, as JSON can hold it."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from effnetv2_jax.models import EfficientNetSpec, GroupSpec, Spec, VisionTransformerSpec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError

KEY = "effnetv2_jax"
"""Under which a description stands beside others'."""

AS_TRAINED = ("padding", "bn_epsilon", "norm_epsilon")
"""Fields of specs, as far as they have them, without which weights compute something else."""


def _efficientnet(groups: list[dict[str, Any]], **fields: Any) -> EfficientNetSpec:
    return EfficientNetSpec(groups=tuple(GroupSpec(**group) for group in groups), **fields)


_SPECS: dict[str, Callable[..., Spec]] = {
    "efficientnet": _efficientnet,
    "vit": VisionTransformerSpec,
}
_KINDS: dict[type[Spec], str] = {EfficientNetSpec: "efficientnet", VisionTransformerSpec: "vit"}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file of ours says of its weights.

    Attributes:
        spec: of the network, with the preprocessing it expects.
        num_classes: of its classifier.
        class_names: one a class, in the order of the labels; None where unknown.
        origin: where they come from, for people.
    """

    spec: Spec
    num_classes: int
    class_names: tuple[str, ...] | None
    origin: str

    def to_json(self) -> str:
        """As text; what the preprocessing is, is there for other people's programs."""
        family = dataclasses.asdict(get_preprocessing(self.spec.preprocessing))
        # JSON has no infinity.
        family = {name: str(x) if x == float("inf") else x for name, x in family.items()}
        more = {"kind": _KINDS[type(self.spec)], "preprocessing": family}
        return json.dumps(dataclasses.asdict(self) | more)

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """The description in a text; raises UsageError where there is none."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            # There was one kind when the first files were written.
            make_spec = _SPECS[values.get("kind", "efficientnet")]
            names = values["class_names"]
            return cls(
                spec=make_spec(**values["spec"]),
                num_classes=int(values["num_classes"]),
                class_names=None if names is None else tuple(map(str, names)),
                origin=str(values["origin"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"its description is not one that this version of effnetv2_jax writes ({error})"
            ) from error
