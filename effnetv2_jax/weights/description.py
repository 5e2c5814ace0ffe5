"""The description that we write beside weights: the network that they are for, as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from effnetv2_jax.models.family import Spec
from effnetv2_jax.models.registry import FAMILIES, family_of
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError

KEY = "effnetv2_jax"
"""The key of the description in a file's metadata."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A file's description of its weights.

    Attributes:
        spec: The network, with the preprocessing that it expects.
        num_classes: The number of classes.
        class_names: The names of the classes in the order of the labels; None if unknown.
        origin: The weights' origin, for people.
        exif_orientation: True if the network was trained on images turned as their EXIF says.
    """

    spec: Spec
    num_classes: int
    class_names: tuple[str, ...] | None
    origin: str
    exif_orientation: bool = False

    def to_json(self) -> str:
        """Returns the description as text.

        It spells out the preprocessing for other people's programs.
        """
        family = dataclasses.asdict(get_preprocessing(self.spec.preprocessing))
        family["exif_orientation"] = self.exif_orientation
        # JSON has no infinity.
        family = {name: str(x) if x == float("inf") else x for name, x in family.items()}
        more = {"kind": family_of(self.spec).name, "preprocessing": family}
        return json.dumps(dataclasses.asdict(self) | more)

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Reads a description.

        Raises:
            UsageError: If the text is not a description.
        """
        try:
            values: Mapping[str, Any] = json.loads(text)
            # The first files were written when there was one family.
            kind = values.get("kind", "efficientnet")
            family = {family.name: family for family in FAMILIES}[kind]
            names = values["class_names"]
            return cls(
                spec=family.read_spec(values["spec"]),
                num_classes=int(values["num_classes"]),
                class_names=None if names is None else tuple(map(str, names)),
                origin=str(values["origin"]),
                exif_orientation=bool(values.get("exif_orientation", False)),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"its description is not one that this version of effnetv2_jax writes ({error})"
            ) from error
