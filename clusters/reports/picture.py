"""Pictures of results: one look for all of them, drawn without a display, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from onibi.platform.durable import write_durably

BLUE, ORANGE, GREEN, VIOLET, GREY = "#0072B2", "#D55E00", "#009E73", "#8E5A9B", "#5F6770"
"""Told apart by all eyes."""

INK = "#202428"
_TEXT, _RULE, _GRID = "#3A4046", "#9AA2AA", "#E4E7EA"
_DOTS_PER_INCH = 130


def new_picture(width_inches: float, height_inches: float, title: str) -> Figure:
    """An empty one with its title at the top left. Panels make room for their own labels."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width_inches, height_inches), dpi=_DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)  # not pyplot, which keeps global state and looks for a display
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.012, ha="left", parse_math=False)
    return figure


def plain_axes(axis: Axes, title: str = "", *, x: str = "", y: str = "") -> None:
    """The common look of a panel: a light grid behind, two spines, small labels; ``x`` and ``y`` name its axes."""
    axis.set_title(title, fontsize=10, loc="left", color=INK)
    axis.grid(visible=True, color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_RULE)
    axis.tick_params(labelsize=8, color=_RULE, labelcolor=_TEXT)
    axis.set_xlabel(x, fontsize=8.5, color=_TEXT)
    axis.set_ylabel(y, fontsize=8.5, color=_TEXT)


def write_png(figure: Figure, path: Path) -> None:
    """Replace the file. Raises: OSError where it cannot be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_durably(path, buffer.getvalue())
