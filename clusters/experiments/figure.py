"""Comparisons of an experiment as a picture: differences with their 95% intervals and runs, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onibi.clusters.experiments.outcome import TOO_FEW, ComparisonOutcome
from onibi.clusters.reports.picture import GREEN, GREY, INK, ORANGE, new_picture, plain_axes, write_png

_COLORS = {"above": GREEN, "tie": GREY, "below": ORANGE, TOO_FEW: "#9AA2AA"}
_WIDTH_INCHES, _ROW_INCHES = 8.6, 0.27


def differences_png(outcomes: Sequence[ComparisonOutcome], path: Path, title: str) -> bool:
    """Draw the differences of all comparisons whose runs are there into a PNG, replaced whole or not at all.

    Args:
        outcomes: of the comparisons, in order from the top.
        path: the file to write.
        title: over the picture.
    Returns: False, with no file written, where there is none. Raises: OSError where the file cannot be written.
    """
    drawn = [each for each in outcomes if each.difference is not None]
    if not drawn:
        return False
    figure = new_picture(_WIDTH_INCHES, 1.3 + _ROW_INCHES * len(drawn), title)
    axis = figure.subplots()
    labelled: set[str] = set()
    for place, each in enumerate(drawn):
        assert each.difference is not None, "chosen above"
        middle, low, high = each.difference.value, each.difference.low, each.difference.high
        if not each.difference.is_known:
            low = high = middle
        axis.plot(each.singles, [place] * len(each.singles), "|", color=_COLORS[each.found], markersize=7, alpha=0.55)
        axis.errorbar(
            [middle],
            [place],
            xerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            color=_COLORS[each.found],
            marker="o",
            markersize=4.5,
            capsize=2.5,
            elinewidth=1.4,
            linestyle="none",
            label=None if each.found in labelled else f"found: {each.found}",
        )
        labelled.add(each.found)
    axis.axvline(0.0, color=INK, linewidth=0.9)
    axis.set_yticks(range(len(drawn)), [_name(each) for each in drawn])
    axis.invert_yaxis()
    plain_axes(axis, x="difference of scores with its 95% interval,\neach run a stroke; better lies to the right")
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2)
    write_png(figure, path)
    return True


def _name(outcome: ComparisonOutcome) -> str:
    """One name for a pair, as `…: hl_gauss over mse` where the two names differ in their last word alone."""
    comparison = outcome.comparison
    (stem, _, arm), (other_stem, _, other) = comparison.arm.rpartition("-"), comparison.other.rpartition("-")
    pair = f"{stem}: {arm} over {other}" if stem and stem == other_stem else f"{comparison.arm} over {comparison.other}"
    tested = "" if outcome.p_value is None else f", p = {outcome.p_value:.2g}"
    return f"{pair}, expected {comparison.expected}{tested}"
