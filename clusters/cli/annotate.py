"""``onibi annotate``: judge captions that are stored already, as Motif does, and learn to judge like that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onibi.clusters.cli.frame import (
    DEFAULT_RUNS_FOLDER,
    INTERRUPTED_EXIT,
    Debug,
    RunsFolder,
    progress_bar,
    tell,
    told,
    wide_console,
)

if TYPE_CHECKING:
    from onibi.clusters.judging.caption_annotation import Outcome, Work
    from onibi.learners.reward_models.settings import RewardModelSettings
    from onibi.platform.annotation.annotator import Annotator
    from onibi.platform.annotation.estimate import AnnotationEstimate
    from onibi.platform.annotation.stored_captions import StoredCaptions
    from onibi.platform.annotation.table import AnnotationTable

_TABLE = "annotations"  # in the folder of runs, as annotation.table: auto
_LINE_SECONDS = 10.0


def annotate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A run (name, folder, 'last'), a replay log, an exported dataset, or a table of labels.",
            show_default=False,
        ),
    ] = None,
    annotator: Annotated[
        str | None,
        typer.Option(
            "--annotator",
            metavar="KIND",
            help="Who judges: a kind (docs/annotators.md), with the run's settings of it where there are some, or a "
            "name among the run's annotators. Without it the run's own judge, or auto where SOURCE is no run.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the annotator, as goal=…; may be repeated."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, metavar="N", help="Judge N pairs of captions, not each caption.")
    ] = None,
    votes: Annotated[int, typer.Option("--votes", min=1, metavar="N", help="Independent labels of each caption.")] = 1,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=2, metavar="N", help="Only the N captions that were met most; with --benchmark N at random."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", file_okay=False, help="The annotation table; RUNS_FOLDER/annotations by default."),
    ] = None,
    only_estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell calls, tokens and money of what is left, and ask nobody.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE.parquet", help="Write this judge's verdicts there.")
    ] = None,
    reward_model: Annotated[
        Path | None,
        typer.Option("--reward-model", metavar="FOLDER", help="Fit a reward model to this judge's verdicts."),
    ] = None,
    model_settings: Annotated[
        list[str] | None,
        typer.Option("--model-set", metavar="KEY=VALUE", help="A setting of the reward model, as members=3."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Draws pairs, and the reward model's beginning.")
    ] = 1,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Measure the annotator on captions judged by hand; takes no SOURCE.")
    ] = False,
    goals: Annotated[
        list[str] | None,
        typer.Option("--goal", metavar="NAME", help="A goal of --benchmark (descend, combat, collect); all without."),
    ] = None,
    judged: Annotated[
        Path | None,
        typer.Option("--captions", dir_okay=False, metavar="FILE.csv", help="A set of your own for --benchmark."),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=0, metavar="SECONDS", help="How long to wait for a server that is gone.")
    ] = 60.0,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    r"""Judge the captions of what is stored, without training anything, and show the verdicts.

    What the judge has answered before, in a run or here, is not asked again: after Ctrl-C, an empty budget or a dead
    server the same command goes on. Exit code 1 where something is left.

    Examples:
      onibi annotate last          # by the run's own judge: what has no label yet
      onibi annotate last --annotator embedding --set goal="Find the key."
      onibi annotate last --annotator openai --estimate \
          --set base_url=http://127.0.0.1:8000/v1 --set model=llama
      onibi annotate logs/corridor --annotator lexicon --pairs 500 \
          --reward-model models/corridor
      onibi train minihack-oni --set annotator.kind=replay \
          --set annotator.path=runs/annotations
      onibi annotate --benchmark --annotator embedding --goal descend
    """
    with told(debug=debug, runs_folder=runs_folder):
        _check_mode(
            source,
            benchmark=benchmark,
            for_sources={
                "--pairs": pairs is not None,
                "--votes": votes != 1,
                "--table": table is not None,
                "--estimate": only_estimate,
                "--export": export is not None,
                "--reward-model": reward_model is not None,
                "--model-set": bool(model_settings),
            },
            for_benchmark={"--goal": bool(goals), "--captions": judged is not None},
        )
        if source is None:
            from onibi.clusters.cli.benchmark import show_benchmark

            show_benchmark(annotator or "auto", settings or [], goals or [], judged, limit, seed)
            return
        chosen = _check_fit(reward_model, model_settings or [], export, only_estimate=only_estimate)
        from onibi.clusters.judging import caption_annotation
        from onibi.clusters.judging.stored_judge import judge_of
        from onibi.platform.annotation.stored_captions import read_captions
        from onibi.platform.annotation.table import AnnotationTable

        console = wide_console()
        judge = judge_of(source, runs_folder, annotator, settings or [])
        captions = read_captions(source, runs_folder).first(limit)
        place = (runs_folder / _TABLE if table is None else table).expanduser()
        opened = AnnotationTable(place)
        try:
            work = _work(captions, judge, opened, pairs, votes, seed)
            expected = caption_annotation.estimate(judge, work)
            tell(console, _plan_text(captions, judge, work, expected, pairs, only_estimate=only_estimate))
            if only_estimate:
                return
            outcome = _carry_out(judge, work, opened, patience) if work.items else None
            if outcome is not None:
                tell(console, _outcome_text(outcome, place))
            _show_verdicts(opened, judge, captions, pairs=pairs is not None)
            if export is not None:
                print(_export(opened, judge, export, pairs=pairs is not None))
            if reward_model is not None and outcome is not None and outcome.left:
                print(f"no reward model: {outcome.left:,} are not judged yet; the same command goes on")
            elif reward_model is not None:
                _fit(opened, judge, captions, reward_model, chosen, seed, pairs=pairs is not None)
        finally:
            judge.close()
            opened.close()
    if outcome is not None and outcome.left:
        raise typer.Exit(INTERRUPTED_EXIT if outcome.stopped_by == "interrupted" else 1)


def _check_mode(
    source: str | None, *, benchmark: bool, for_sources: dict[str, bool], for_benchmark: dict[str, bool]
) -> None:
    """Every option acts or is refused. Raises: ConfigError."""
    from onibi.platform.errors import ConfigError

    if benchmark and source is not None:
        raise ConfigError(f"annotate: --benchmark asks about captions of its own, not about {source}. Leave one out.")
    if not benchmark and source is None:
        raise ConfigError("annotate: name a SOURCE (as 'last'), or measure an annotator with --benchmark.")
    idle = [name for name, given in (for_sources if benchmark else for_benchmark).items() if given]
    if idle:
        place = "with --benchmark" if benchmark else "without --benchmark"
        raise ConfigError(f"annotate: {', '.join(idle)} does nothing {place}. Leave it out.")


def _check_fit(
    folder: Path | None, settings: list[str], export: Path | None, *, only_estimate: bool
) -> RewardModelSettings:
    """What comes after judging, looked at before it: a paid judge is not asked first. Raises: ConfigError."""
    from onibi.learners.reward_models.settings import RewardModelSettings
    from onibi.platform.config import read_settings
    from onibi.platform.errors import ConfigError

    if settings and folder is None:
        raise ConfigError("annotate: --model-set does nothing without --reward-model. Leave it out.")
    if only_estimate and (folder is not None or export is not None):
        raise ConfigError("annotate: --export and --reward-model do nothing with --estimate. Leave them out.")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--reward-model {folder}: is a file. Name a folder, which may be new.")
    try:
        return read_settings(RewardModelSettings, {}, source="--model-set", overrides=settings)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--set ", "--model-set ")) from error


def _work(
    captions: StoredCaptions, judge: Annotator, table: AnnotationTable, pairs: int | None, votes: int, seed: int
) -> Work:
    import numpy as np

    from onibi.clusters.judging.caption_annotation import label_work, pair_work
    from onibi.platform.errors import ConfigError

    if pairs is None:
        return label_work(captions, judge, table, votes=votes)
    if votes > 1:
        raise ConfigError("annotate: --votes counts labels of single captions; leave it out with --pairs.")
    return pair_work(captions, judge, table, pairs=pairs, rng=np.random.default_rng(seed))


def _plan_text(
    captions: StoredCaptions,
    judge: Annotator,
    work: Work,
    expected: AnnotationEstimate,
    pairs: int | None,
    *,
    only_estimate: bool,
) -> str:
    what = "labels" if pairs is None else "pairs"
    lines = [
        f"{captions.source}: {len(captions.keys):,} captions to judge by {judge.model}",
        f"  goal: {judge.goal}",
        f"  {what}: {len(work.items):,} to ask, {work.known:,} answered before",
    ]
    if expected.calls:
        money = f", {expected.cost:,.4f} in money" if expected.cost else ", no prices set"
        lines.append(
            f"  at most {expected.calls:,} calls, {expected.prompt_tokens:,} tokens of prompts and "
            f"{expected.reply_tokens:,} of replies{money}"
        )
    elif only_estimate:
        lines.append("  no calls of a server, no tokens, no money")
    return "\n".join(lines)


def _carry_out(judge: Annotator, work: Work, table: AnnotationTable, patience: float) -> Outcome:
    from onibi.clusters.interruption import Interruption
    from onibi.clusters.judging.caption_annotation import carry_out
    from onibi.platform.annotation.annotator import Interruptible

    interruption = Interruption(judge.interrupt) if isinstance(judge, Interruptible) else Interruption()
    with _progress(len(work.items)) as show, interruption.heard():
        return carry_out(
            judge,
            work,
            table,
            patience_seconds=patience,
            on_progress=show,
            waiting=interruption.waiting,
            should_stop=lambda: interruption.asked,
        )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Outcome], None]]:
    """A bar on a terminal; a line every ten seconds elsewhere."""
    import time

    from rich.progress import MofNCompleteColumn, TextColumn

    bar = progress_bar(MofNCompleteColumn(), TextColumn("{task.fields[notes]}"))
    if bar.console.is_terminal:
        with bar:
            task = bar.add_task("judging", total=total, notes="")

            def advance(outcome: Outcome) -> None:
                bar.update(task, completed=outcome.answered, notes=_notes(outcome))

            yield advance
        return
    told_at = time.monotonic()

    def tell(outcome: Outcome) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _LINE_SECONDS:
            told_at = time.monotonic()
            print(f"{outcome.answered:,} of {total:,} judged {_notes(outcome)}".rstrip(), file=sys.stderr)

    yield tell


def _notes(outcome: Outcome) -> str:
    notes = [f"{outcome.invalid:,} replies unreadable"] if outcome.invalid else []
    notes += [f"{outcome.asked_elsewhere:,} asked by another run or command"] if outcome.asked_elsewhere else []
    return ", ".join(notes)


def _outcome_text(outcome: Outcome, place: Path) -> str:
    given = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(outcome.verdicts.items()))
    lines = [f"{outcome.answered:,} of {outcome.total:,} judged in {outcome.seconds:.1f} s ({given or 'nothing'})"]
    if outcome.elsewhere:
        lines.append(f"  {outcome.elsewhere:,} of them were answered to another run or command meanwhile")
    if outcome.tokens:
        lines.append(f"  {outcome.tokens:,} tokens" + (f", {outcome.cost:,.4f} in money" if outcome.cost else ""))
    lines.append(f"  kept in {place}")
    if outcome.left:
        lines.append(f"  {outcome.left:,} left: {outcome.why_left}. The same command goes on from here.")
    return "\n".join(lines)


def _names(judge: Annotator) -> tuple[str, str, str]:
    """By which a table finds a judge's verdicts."""
    return judge.prompt_version, judge.model, judge.goal


def _show_verdicts(table: AnnotationTable, judge: Annotator, captions: StoredCaptions, *, pairs: bool) -> None:
    """What the judge said, now or before, of the captions of the source."""
    from onibi.clusters.judging.verdict_table import label_table, preference_table

    mine = _names(judge)
    shown = (
        preference_table(captions, table.preferences(*mine)) if pairs else label_table(captions, table.labels(*mine))
    )
    if shown is not None:
        wide_console().print(shown)


def _export(table: AnnotationTable, judge: Annotator, path: Path, *, pairs: bool) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    from onibi.platform.annotation.labels import labels_to_arrow, preferences_to_arrow
    from onibi.platform.durable import write_durably
    from onibi.platform.errors import ConfigError

    mine = _names(judge)
    found = preferences_to_arrow(table.preferences(*mine)) if pairs else labels_to_arrow(table.labels(*mine))
    sink = pa.BufferOutputStream()
    parquet.write_table(found, sink, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise ConfigError(f"--export {path}: not written ({error}). Choose another file.") from error
    return f"{len(found):,} {'preferences' if pairs else 'labels'} in {path}"


def _fit(
    table: AnnotationTable,
    judge: Annotator,
    captions: StoredCaptions,
    folder: Path,
    chosen: RewardModelSettings,
    seed: int,
    *,
    pairs: bool,
) -> None:
    from onibi.clusters.judging.caption_annotation import labelled_keys
    from onibi.learners.reward_models.fitted_model import fit_offline
    from onibi.platform.errors import ConfigError

    mine = _names(judge)
    data = labelled_keys(captions, table.preferences(*mine) if pairs else table.labels(*mine))
    about = {"goal": judge.goal, "model": judge.model, "prompt_version": judge.prompt_version}
    kind: Literal["ranking", "classification"] = "ranking" if pairs else "classification"
    fitted = fit_offline(data, chosen, kind, seed=seed, about=about)
    try:
        fitted.save(folder)
    except OSError as error:
        raise ConfigError(f"--reward-model {folder}: cannot be written ({error}). Name a folder that can.") from error
    print(f"reward model ({kind}) in {folder}")
    for name, value in sorted(fitted.metrics.items()):
        print(f"  {name.removeprefix('reward_model/')}: {value:.4g}")
    print(
        f"  train on it: --set rewards.intrinsic.kind={kind} --set reward_model.fitted={folder} "
        "--set reward_model.frozen=true"
    )
