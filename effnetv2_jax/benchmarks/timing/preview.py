"""A contact sheet of training images: one row per stage."""

import os

import numpy as np

from effnetv2_jax.runtime.errors import UsageError

_CELL_INCHES = 1.2
_LABEL_INCHES = 1.2
_TITLE_INCHES = 0.4
_DPI = 150


def write_preview(path: str, title: str, rows: list[tuple[str, np.ndarray]]) -> None:
    """Draws rows of images, all of one size on paper.

    Args:
        path: of the picture, with an ending that matplotlib knows, e.g. ``.png``.
        title: above the rows.
        rows: name and images, uint8 [columns, height, width, 3].

    Raises:
        UsageError: where the picture cannot be written.
    """
    from matplotlib.figure import Figure

    columns = max(len(images) for _, images in rows)
    width = _LABEL_INCHES + _CELL_INCHES * columns
    height = _TITLE_INCHES + _CELL_INCHES * len(rows)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.text(0.01, 1 - _TITLE_INCHES / 2 / height, title, va="center", weight="bold")
    for i, (name, images) in enumerate(rows):
        bottom = 1 - (_TITLE_INCHES + _CELL_INCHES * (i + 1)) / height
        figure.text(0.01, bottom + _CELL_INCHES / 2 / height, name, va="center", size=9)
        for j, image in enumerate(images):
            left = (_LABEL_INCHES + _CELL_INCHES * j) / width
            cell = (left, bottom, 0.96 * _CELL_INCHES / width, 0.96 * _CELL_INCHES / height)
            axes = figure.add_axes(cell)
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"preview {path!r} cannot be written: {error}") from error
