"""``onibi annotate --benchmark``: how good a judge is, on captions that were judged by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def show_benchmark(
    kind: str, settings: Sequence[str], goals: Sequence[str], captions: Path | None, limit: int | None, seed: int
) -> None:
    """Measure an annotator and print the table.

    Raises: ConfigError for what is not allowed; AnnotatorError where it cannot judge at all.
    """
    from onibi.clusters.cli.frame import tell, wide_console
    from onibi.clusters.judging.annotator_benchmark import benchmark_table, run_benchmark
    from onibi.clusters.judging.judged_captions import SHIPPED

    chosen = SHIPPED if captions is None else captions.expanduser()
    with _progress() as show:
        rows = run_benchmark(kind, settings, goals, captions=chosen, limit=limit, seed=seed, on_progress=show)
    console = wide_console()
    console.print(benchmark_table(rows, console.width))
    for asked in dict.fromkeys(row.asked_goal for row in rows):  # a lexicon is asked one goal of its own each time
        these = [row for row in rows if row.asked_goal == asked]
        first = ", ".join(f"{row.first_seconds:.1f} s" for row in these)
        tell(console, f"{', '.join(row.goal for row in these)}: asked {asked!r}; first label after {first}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; nothing elsewhere, where the table alone is wanted."""
    if not sys.stderr.isatty():
        yield lambda _goal, _answered, _total: None
        return
    from rich.progress import MofNCompleteColumn

    from onibi.clusters.cli.frame import progress_bar

    with progress_bar(MofNCompleteColumn()) as bar:
        tasks: dict[str, object] = {}

        def show(goal: str, answered: int, total: int) -> None:
            if goal not in tasks:
                tasks[goal] = bar.add_task(goal, total=total)
            bar.update(tasks[goal], completed=answered)  # type: ignore[arg-type]

        yield show
