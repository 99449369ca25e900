"""The dashboard of runs: what docs/metrics.md lists, as clusters/prometheus_export.py exports it.

A gauge of Ray's has labels of the process that set it (WorkerId, SessionName); ``max by (run)`` leaves them out, so
that a resumed run goes on as one line.
"""

from __future__ import annotations

from onibi.infra.grafana.panels import Choice, Dashboard, Panel, Query, Section

_SECONDS, _SHARE, _BYTES, _A_SECOND = "s", "percentunit", "bytes", "cps"


def _of_run(gauge: str, legend: str = "") -> Query:
    """Newest value of a figure, one line for each run."""
    return Query(expression=f'max by (run) (ray_onibi_{gauge}{{run=~"$run"}})', legend=f"{{{{run}}}} {legend}".strip())


def _of_each(gauge: str, legend: str = "") -> Query:
    """Of a family of figures, one line for each run and ``name``."""
    selector = f'ray_onibi_{gauge}{{run=~"$run"}}'
    return Query(expression=f"max by (run, name) ({selector})", legend=f"{{{{run}}}} {{{{name}}}} {legend}".strip())


def _stat(title: str, gauge: str, unit: str = "short", says: str = "") -> Panel:
    return Panel(title=title, queries=[_of_run(gauge)], unit=unit, kind="stat", says=says, width=4, height=4)


def _shares(title: str, queries: list[Query], says: str) -> Panel:
    return Panel(title=title, queries=queries, unit=_SHARE, says=says, least=0.0, most=1.0)


_NOW = Section(
    title="Now",
    panels=[
        Panel(
            title="Run",
            queries=[_of_run("run_active")],
            kind="stat",
            says="Nothing: the run's process is gone.",
            width=4,
            height=4,
            states=[(0, "ended", "blue"), (1, "trains", "green")],
        ),
        _stat("Env steps", "actors_env_steps"),
        _stat("Env steps a second", "actors_env_steps_per_second", _A_SECOND),
        _stat("Return", "actors_episode_return", says="Mean of the last 100 episodes, explored actions included."),
        _stat("Success", "actors_success_rate", _SHARE, "Where the environment tells success."),
        _stat("Updates a second", "learner_updates_per_second", _A_SECOND),
        Panel(
            title="Alerts that fire",
            queries=[
                Query(
                    expression='max by (alertname, run, name, ip) (ALERTS{alertname=~"Onibi.*", alertstate="firing"})',
                    legend="{{alertname}} {{run}} {{name}} {{ip}}",
                )
            ],
            kind="state-timeline",
            says="Rules of infra/prometheus/alerts.yaml.",
            width=12,
            height=5,
            states=[(1, "fires", "red")],
        ),
        Panel(
            title="Alarms on hacked rewards",
            queries=[_of_each("alarms_up")],
            kind="state-timeline",
            says="docs/annotation.md says what each means.",
            width=12,
            height=5,
            states=[(0, "quiet", "green"), (1, "up", "red")],
        ),
    ],
)
_PROGRESS = Section(
    title="Progress",
    panels=[
        Panel(
            title="Return",
            queries=[
                _of_run("actors_episode_return", "played"),
                _of_run("evaluation_return_mean", "evaluated"),
            ],
            says="Played: last 100 episodes of training. Evaluated: episodes of one checkpoint without exploring.",
            width=12,
        ),
        _shares(
            "Success",
            [_of_run("actors_success_rate", "played"), _of_run("evaluation_success_rate", "evaluated")],
            "Share of episodes.",
        ),
        Panel(title="Env steps a second", queries=[_of_run("actors_env_steps_per_second")], unit=_A_SECOND),
        Panel(title="Episode length", queries=[_of_run("actors_episode_length")], says="Env steps, mean."),
        Panel(
            title="Env steps and updates",
            queries=[_of_run("actors_env_steps", "env steps"), _of_run("learner_updates", "updates")],
        ),
    ],
)
_LEARNER = Section(
    title="Learner",
    panels=[
        Panel(
            title="Loss",
            queries=[
                _of_run("learner_loss_above_floor", "above floor"),
                _of_run("learner_value_loss_above_floor", "value, above floor"),
                _of_run("learner_policy_loss", "policy"),
            ],
            says="A figure that is not finite is left out: see skipped updates.",
        ),
        Panel(
            title="Values",
            queries=[
                _of_run("learner_q_mean", "Q mean"),
                _of_run("learner_q_max", "Q greatest"),
                _of_run("learner_value_mean", "value mean"),
                _of_run("learner_target_mean", "target mean"),
            ],
            says="Healthy values stay within what an episode can pay.",
        ),
        Panel(
            title="Gradient norm and skipped updates",
            queries=[_of_run("learner_gradient_norm", "norm"), _of_run("learner_skipped_updates", "skipped")],
            says="Skipped: loss or gradient was not finite. Ten in a row end the run.",
        ),
        Panel(
            title="Policy lag",
            queries=[_of_run("actors_policy_lag_mean", "mean"), _of_run("actors_policy_lag_max", "greatest")],
            says="Updates that the acting weights are behind the learner.",
        ),
        Panel(
            title="Age of what is learnt from",
            queries=[
                _of_run("learner_data_age_mean_updates", "mean"),
                _of_run("learner_data_age_max_updates", "greatest"),
            ],
            says="Updates between the weights that acted and the learner's.",
        ),
        _shares(
            "Clipped shares",
            [
                _of_run("learner_clipped_share", "targets outside the support"),
                _of_run("learner_surrogate_clipped_share", "ratios"),
                _of_run("learner_ratio_cut_share", "ratios cut by V-trace"),
            ],
            "Targets: healthy is near 0, else widen learner.support.",
        ),
        Panel(title="Entropy", queries=[_of_run("learner_entropy")], says="Of the policy, in nats."),
        Panel(title="KL from behaviour", queries=[_of_run("learner_kl_from_behaviour")], says="In nats."),
        Panel(
            title="Weights on their way",
            queries=[_of_run("learner_publish_delay_max_seconds", "longest")],
            unit=_SECONDS,
            says="From the copy of the weights to the moment when actors can have it; healthy is under 0.1 s.",
        ),
    ],
)
_REPLAY = Section(
    title="Replay and limiter",
    panels=[
        Panel(
            title="Rows", queries=[_of_run("replay_readable_rows", "in the ring"), _of_run("replay_log_rows", "logged")]
        ),
        Panel(
            title="Samples an insert",
            queries=[_of_run("replay_samples_per_insert")],
            says="Near the limiter's setting, but for the begin.",
        ),
        _shares(
            "Held back by the limiter",
            [
                Query(
                    expression=f'max by (run) (avg_over_time(ray_onibi_replay_{side}_stalled{{run=~"$run"}}[2m]))',
                    legend=f"{{{{run}}}} {side}",
                )
                for side in ("actors", "learner")
            ],
            "Share of the last two minutes.",
        ),
        Panel(
            title="Log",
            queries=[_of_run("replay_log_bytes")],
            unit=_BYTES,
            says="Size of the segments that are kept.",
        ),
        Panel(
            title="Log behind",
            queries=[_of_run("replay_log_lag_seconds", "oldest row"), _of_run("replay_log_waited_seconds", "waited")],
            unit=_SECONDS,
            says="Age of the oldest row that is in no finished segment; seconds that insertions waited for the log.",
        ),
        Panel(
            title="Lost",
            queries=[
                _of_run("replay_log_dropped_rows", "rows, by the log"),
                _of_run("replay_lost_rows", "rows, before they were drawn"),
                _of_run("replay_lost_fragments", "fragments"),
                _of_run("replay_overtaken_draws", "draws made again"),
            ],
            says="Healthy is 0.",
        ),
    ],
)
_ANNOTATION = Section(
    title="Captions and annotators",
    panels=[
        _shares(
            "Labelled",
            [
                _of_run("learner_labelled_share", "of drawn rows"),
                _of_run("annotation_labelled_key_share", "of keys"),
                _of_run("annotation_labelled_sighting_share", "of sightings"),
            ],
            "Rises to 1.",
        ),
        Panel(
            title="Queue",
            queries=[
                _of_run("annotation_queue_keys", "waiting"),
                _of_run("annotation_in_flight_keys", "asked"),
                _of_run("annotation_parked_keys", "given up"),
            ],
            says="Keys. A queue that only grows: the judge is too slow.",
        ),
        Panel(
            title="Time for an answer",
            queries=[
                _of_each("annotator_latency_p50_seconds", "median"),
                _of_each("annotator_latency_p95_seconds", "95 %"),
            ],
            unit=_SECONDS,
        ),
        Panel(
            title="From caption to label",
            queries=[
                _of_run("annotation_label_delay_p50_seconds", "median"),
                _of_run("annotation_label_delay_p95_seconds", "95 %"),
            ],
            unit=_SECONDS,
        ),
        Panel(title="Tokens", queries=[_of_each("annotator_tokens")], says="In this session."),
        Panel(title="Cost", queries=[_of_each("annotator_cost")], says="In the unit of prices, in this session."),
        Panel(
            title="Annotators",
            queries=[
                _of_run("annotation_annotators_healthy", "healthy"),
                _of_run("annotation_annotators_failing", "failing"),
                _of_run("annotation_annotators_spent", "budget used up"),
            ],
        ),
        Panel(
            title="Failures",
            queries=[
                _of_each("annotator_failed_batches", "batches"),
                _of_each("annotator_invalid", "unreadable answers"),
                _of_each("annotator_failures", "requests"),
            ],
        ),
        Panel(
            title="Asked in a million env steps",
            queries=[_of_run("annotation_asked_per_million_steps")],
            says="Falls as a run goes on.",
        ),
    ],
)
_REWARDS = Section(
    title="Rewards",
    panels=[
        Panel(title="Reward by component", queries=[_of_each("learner_reward")], says="Mean over the steps drawn."),
        Panel(
            title="Intrinsic return", queries=[_of_run("actors_intrinsic_return")], says="Before coefficient and cap."
        ),
        _shares(
            "Who is paid",
            [
                _of_run("rewards_best_key_share", "best-paid key"),
                _of_run("rewards_heard_share", "perceived, not done"),
                _of_run("reward_table_paid_row_share", "rows paid for"),
            ],
            "Near 1: one key has all, or everything is paid for.",
        ),
    ],
)
_MODELS = Section(
    title="Reward models, bonuses, central inference",
    folded=True,
    panels=[
        Panel(title="Reward model: loss", queries=[_of_run("reward_model_loss")]),
        _shares(
            "Reward model: held out",
            [
                _of_run("reward_model_held_out_auc", "AUC"),
                _of_run("reward_model_held_out_pair_accuracy", "pairs"),
            ],
            "0.5 is guessing.",
        ),
        Panel(title="Bonus: loss", queries=[_of_each("bonus_loss")]),
        Panel(title="Bonus: error", queries=[_of_each("bonus_error_mean")], says="Falls as the task becomes familiar."),
        Panel(title="Inference: requests a pass", queries=[_of_run("inference_requests_per_pass")]),
        Panel(title="Inference: time of a pass", queries=[_of_run("inference_pass_seconds")], unit=_SECONDS),
    ],
)

RUN = Dashboard(
    uid="onibi-run",
    title="Onibi run",
    says="Runs under Ray, by name. docs/metrics.md says what each figure is.",
    choices=[Choice(name="run", label="run", metric="ray_onibi_run_active")],
    sections=[_NOW, _PROGRESS, _LEARNER, _REPLAY, _ANNOTATION, _REWARDS, _MODELS],
)
