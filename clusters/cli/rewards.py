"""``onibi rewards``: what a run pays its captions, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from onibi.clusters.cli.command_help import HelpfulCommand
from onibi.clusters.cli.frame import DEFAULT_RUNS_FOLDER, Debug, RunName, RunsFolder, tell, told, wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from onibi.clusters.reports.reward_explanation import AlarmCourse, ExplainedKey, Explanation

_WIDE = 120
_REPLY_CHARACTERS = 160  # where it stands under its caption; --json has all of it
_FIGURE_TEXTS = {
    "rewards/best_key_share": "the best-paid caption has {} of what captions were paid lately",
    "rewards/heard_share": "what is heard, not done, has {} of what the best-paid captions were paid lately",
    "rewards/new_keys_per_episode": "an episode meets {} helpful captions",
    "rewards/discounted_total_of_success": "a successful episode is paid {} by environment and captions, discounted",
    "rewards/discounted_total_of_failure": "a failed episode is paid {} by environment and captions, discounted",
    "actors/success_rate": "{} of the episodes in training succeed",
    "actors/intrinsic_return": "an episode is paid {} for captions, before the coefficient and any cap",
}

app = typer.Typer(
    name="rewards",
    help="Look into what a run pays its captions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """A group of one command stays a group."""


@app.command(name="explain", cls=HelpfulCommand)
def explain_run(
    run: RunName,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="So many captions.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    runs_folder: RunsFolder = DEFAULT_RUNS_FOLDER,
    debug: Debug = False,
) -> None:
    """Show the best-paid captions with their labels and the judge's reply, and the alarms on hacked rewards.

    Paid is what a caption brought in rollouts so far, each time by the labels of that moment, before
    rewards.intrinsic.coefficient; share is its part of all that. Alarms: one caption paid
    over half; captions per episode rising while success does not; failed episodes paid as much as successful ones;
    pay for what is heard, not done. The section `alarms` of a run's settings says when each goes off.

    Examples:
      onibi rewards explain last
      onibi rewards explain minihack-oni-2 --limit 100 --json
    """
    with told(debug=debug, runs_folder=runs_folder):
        from onibi.clusters.reports.reward_explanation import explain
        from onibi.platform.run_folder import find_run

        found = explain(find_run(runs_folder, run))
        if as_json:
            print(json.dumps(found.to_json(limit), indent=2))
            return
        console = wide_console()
        console.print(_keys_table(found, limit, console.width))
        for line in _lines(found, limit):
            tell(console, line)


def _keys_table(found: Explanation, limit: int, width: int) -> Table:
    """A row for each key; where ``width`` (in characters) is small, what its judge said stands under its caption."""
    from rich.table import Table
    from rich.text import Text

    from onibi.clusters.reports.figures import UNKNOWN, count_text, share_text, value_text
    from onibi.platform.annotation.captions import printable

    is_narrow = width < _WIDE
    table = Table(
        title=f"Captions of {found.run}", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for name in ("paid", "share", "met", "label", *(() if is_narrow else ("score", "votes"))):
        table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
    for name in ("caption",) if is_narrow else ("caption", "reply"):
        table.add_column(name, overflow="fold")
    colors = {"helpful": "green", "unhelpful": "red"}
    for key in found.keys[:limit]:
        score = UNKNOWN if key.score is None else f"{key.score:.2f}"
        caption = Text(printable(key.key))  # from outside: no markup is read
        reply = Text(printable(key.replies[0]) if key.replies else "", style="dim")
        cells: list[str | Text]
        if not is_narrow:
            cells = [score, _votes_text(key), caption, reply]
        else:
            said = [f"score {score}"] if key.score is not None else []
            said += [f"votes {votes}"] if (votes := _votes_text(key)) else []
            said += [_shortened(reply.plain)] if reply.plain else []
            cells = [Text("\n").join([caption, Text("; ".join(said), style="dim")]) if said else caption]
        table.add_row(
            UNKNOWN if key.paid is None else value_text(key.paid),
            UNKNOWN if key.share is None else share_text(key.share),
            count_text(key.sightings),
            Text(key.verdict or "not yet", style=colors.get(key.verdict, "dim")),
            *cells,
        )
    return table


def _shortened(reply: str) -> str:
    return reply if len(reply) <= _REPLY_CHARACTERS else f"{reply[: _REPLY_CHARACTERS - 1]}…"


def _votes_text(key: ExplainedKey) -> str:
    parts = [f"{key.helpful_votes} of {key.votes}"] if key.votes else []
    if key.won or key.lost or key.tied:
        parts.append(f"{key.won} won, {key.lost} lost, {key.tied} tied")
    if key.unreadable:
        parts.append(f"{key.unreadable} unreadable")
    return "; ".join(parts)


def _lines(found: Explanation, limit: int) -> list[str]:
    from onibi.platform.annotation.captions import printable

    lines = [f"{len(found.keys) - limit} more: --limit N"] if len(found.keys) > limit else []
    lines += [f"goal: {printable(goal)}" for goal in found.goals]
    lines.append(f"checkpoint of {found.env_steps:,} env steps")
    lines += [_figure_text(name, value) for name, value in found.figures.items()]
    lines += [_alarm_text(alarm) for alarm in found.alarms] or ["no alarm was up"]
    return lines


def _figure_text(name: str, value: float) -> str:
    from onibi.clusters.reports.figures import share_text, value_text

    return _FIGURE_TEXTS[name].format(share_text(value) if name.endswith(("_share", "_rate")) else value_text(value))


def _alarm_text(alarm: AlarmCourse) -> str:
    from onibi.clusters.reports.progress import ALARM_TEXTS

    state = "is up" if alarm.is_up else "was up"
    return (
        f"ALARM {alarm.name} {state}: {ALARM_TEXTS[alarm.name]} (in {alarm.share:.0%} of the run's intervals, from "
        f"{alarm.first_env_steps:,} to {alarm.last_env_steps:,} env steps)"
    )
