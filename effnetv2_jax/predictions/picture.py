"""One picture of images and their likeliest classes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from effnetv2_jax.data.sources.named_images import printable, small_copy
from effnetv2_jax.predictions.prediction import Prediction
from effnetv2_jax.runtime.errors import UsageError, reason
from effnetv2_jax.training.observing.style import (
    BLUE,
    GLYPH_WIDTH,
    GREEN,
    GREY,
    INK,
    POINTS_PER_INCH,
    VERMILLION,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_IMAGES = 64
MAX_GUESSES = 5

# The size of a cell in inches: the image in a square, and right of it a row for every guess.
_SQUARE, _GAP, _ROWS = 1.6, 0.15, 2.8
_CELL_WIDTH, _CELL_HEIGHT = _SQUARE + _GAP + _ROWS, 0.24 + _SQUARE
_BETWEEN, _MARGIN, _TITLE = 0.3, 0.15, 0.35
_BAR = 0.07
_TRACK = "#ECECEC"
_NAME_POINTS, _TITLE_POINTS = 8.5, 10.0
_DPI = 150
# Enough for the square in print, whatever the size of the image.
_SIDE = round(_SQUARE * 2 * _DPI)
_PAGE = 297 / 210  # A4, height over width


def check_picture(path: str) -> None:
    """Raises UsageError for a path whose ending matplotlib does not know."""
    from matplotlib.backend_bases import FigureCanvasBase

    allowed = FigureCanvasBase.get_supported_filetypes()
    if os.path.splitext(path)[1].removeprefix(".").lower() not in allowed:
        endings = ", ".join(f".{name}" for name in sorted(allowed))
        raise UsageError(f"picture {path!r} must end in one of {endings}")


def write_picture(
    path: str, title: str, predictions: list[Prediction], right: Sequence[int] | None = None
) -> None:
    """Draws every image whole, in its own shape, beside bars of its likeliest classes.

    Args:
        path: The file for the picture.
        title: The title above it.
        predictions: At least one prediction. The first MAX_GUESSES guesses of each are drawn.
        right: The number of the right class of each image, whose bars are green and the others
            orange. None if it is not known.

    Raises:
        UsageError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    # The smallest number of columns that make a page no taller than A4.
    columns = math.ceil(math.sqrt(len(predictions) * _CELL_HEIGHT / (_PAGE * _CELL_WIDTH)))
    rows = math.ceil(len(predictions) / columns)
    width = 2 * _MARGIN + columns * (_CELL_WIDTH + _BETWEEN) - _BETWEEN
    height = _TITLE + rows * (_CELL_HEIGHT + _BETWEEN)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    # The unit of its coordinates is an inch.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _write(axes, _MARGIN, height - _TITLE / 2, title, size=_TITLE_POINTS, weight="bold")
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        left = _MARGIN + column * (_CELL_WIDTH + _BETWEEN)
        top = height - _TITLE - row * (_CELL_HEIGHT + _BETWEEN)
        _draw_cell(axes, left, top, prediction, right[number] if right else None)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"picture {path!r} cannot be written: {reason(error)}") from error


def _draw_cell(
    axes: Axes, left: float, top: float, prediction: Prediction, right: int | None
) -> None:
    """Draws one image with its guesses; ``left`` and ``top`` are its corner in inches."""
    from matplotlib.patches import Rectangle

    name = _end_of(printable(prediction.image.name), _CELL_WIDTH)
    _write(axes, left, top - 0.12, name, size=_NAME_POINTS, color=GREY)
    bottom = top - _CELL_HEIGHT
    pixels = small_copy(prediction.image, _SIDE).numpy()
    height, width = (_SQUARE * side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    axes.imshow(pixels, extent=(left, left + width, bottom + _SQUARE - height, bottom + _SQUARE))
    left, step = left + _SQUARE + _GAP, _SQUARE / MAX_GUESSES
    for number, guess in enumerate(prediction.guesses[:MAX_GUESSES]):
        height = bottom + _SQUARE - number * step
        full = BLUE if right is None else GREEN if guess.number == right else VERMILLION
        style = {"size": _NAME_POINTS, "color": INK, "weight": "normal" if number else "bold"}
        percent = f"{100 * guess.probability:.1f} %"
        room = _ROWS - _width(f"  {percent}")
        _write(axes, left, height - 0.1, _beginning_of(printable(guess.name), room), **style)
        _write(axes, left + _ROWS, height - 0.1, percent, ha="right", **style)
        for length, colour in ((1.0, _TRACK), (guess.probability, full)):
            corner = (left, height - 0.2 - _BAR)
            axes.add_patch(Rectangle(corner, _ROWS * length, _BAR, color=colour, linewidth=0))


def _write(axes: Axes, left: float, middle: float, text: str, **style) -> None:
    # A dollar in a name is a dollar.
    axes.text(left, middle, text, va="center_baseline", parse_math=False, **{"color": INK} | style)


def _width(text: str) -> float:
    """Returns an upper estimate of the width in inches of a text at the size of names."""
    return GLYPH_WIDTH * _NAME_POINTS / POINTS_PER_INCH * len(text)


def _beginning_of(text: str, room: float) -> str:
    """Shortens a text at its end if it is wider than ``room`` inches."""
    letters = int(room / _width("x"))
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def _end_of(text: str, room: float) -> str:
    """Shortens a text at its beginning, because the end of a path says more."""
    letters = int(room / _width("x"))
    return text if len(text) <= letters else f"…{text[1 - letters :].lstrip()}"
