"""Predictions as text, for people and for programs."""

import json
from collections.abc import Callable

from rich.cells import cell_len

from effnetv2_jax.data.sources.named_images import printable
from effnetv2_jax.predictions.prediction import Prediction

# A column of names is no wider; longer ones push their line to the right.
MAX_COLUMN = 48


def column_width(names: list[str]) -> int:
    """Of the column with these names, in a terminal's cells."""
    return min(max(cell_len(printable(name)) for name in names), MAX_COLUMN)


def as_table(prediction: Prediction, width: int) -> str:
    """A line for each guess: percent and class; the first with the image's name.

    Args:
        prediction: of one image.
        width: of the column of images.
    """
    names = [printable(prediction.image.name), *[""] * (len(prediction.guesses) - 1)]
    return "\n".join(
        f"{name}{' ' * (width - cell_len(name))}  {100 * guess.probability:6.2f} %  "
        f"{printable(guess.name)}"
        for name, guess in zip(names, prediction.guesses, strict=True)
    )


def as_json(prediction: Prediction, width: int) -> str:
    """One JSON object on one line, in ASCII."""
    del width
    guesses = [
        # float32 has no more digits.
        {"class": x.number, "name": x.name, "probability": float(f"{x.probability:.7g}")}
        for x in prediction.guesses
    ]
    return json.dumps({"image": prediction.image.name, "predictions": guesses})


FORMATS: dict[str, Callable[[Prediction, int], str]] = {"table": as_table, "json": as_json}
"""Of (prediction, width of the column of images) → lines."""
