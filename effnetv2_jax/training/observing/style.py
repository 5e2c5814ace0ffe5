"""Colours and sizes that every picture of this project shares."""

# Okabe-Ito colours, told apart under the common colour-vision deficiencies and in grey print.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A8598A"
ORANGE, SKY = "#E69F00", "#56B4E9"
INK, GREY, PALE = "#222222", "#666666", "#C8C8C8"

DPI = 150
POINTS_PER_INCH = 72.0

GLYPH_WIDTH = 0.62
"""The width of an average DejaVu Sans digit or letter, as a share of the font size."""
