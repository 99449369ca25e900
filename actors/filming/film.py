"""Episodes of a policy as moving pictures, with what it heard and what that paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gymnasium.vector import AutoresetMode

from onibi.actors.environments.factory import autoreset_mode
from onibi.actors.evaluation import FrozenRewards, PlayedEpisode
from onibi.actors.filming.camera import FilmedEnvironment, Picture
from onibi.actors.filming.caption_strip import FAINT, FORBIDDEN, PAID, Line, with_strip
from onibi.actors.rollout import Rollout
from onibi.platform.annotation.captions import text_hash
from onibi.platform.fragment import EpisodeStatistics, Fragment
from onibi.platform.rewards.table import caption_rewards
from onibi.platform.spec import ROLE_FINAL

_STRIP_ROWS = 4
_LAST_SECONDS = 1.5  # for which an episode's last picture stands


class Film:
    """Plays episodes one after the other, and shows every step.

    Args:
        rollout: of one lane, whose environment is ``camera``; closed at the end.
        camera: keeps the pictures.
        episodes: how many.
        steps_max: env steps after which the film breaks off, wherever it is.
        rewards: what captions pay; None: they are shown without.
        should_stop: asked between fragments; True breaks the film off.
    """

    def __init__(
        self,
        rollout: Rollout,
        camera: FilmedEnvironment,
        episodes: int,
        steps_max: int,
        rewards: FrozenRewards | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rollout, self._camera, self._rewards = rollout, camera, rewards.own() if rewards else None
        self._episodes, self._steps_max, self._should_stop = episodes, steps_max, should_stop
        self._texts: dict[int, str] = {}  # by hash; of a run without rewards
        self._is_same_step = autoreset_mode(camera, "the filmed environment") is AutoresetMode.SAME_STEP
        self._return = self._intrinsic = 0.0
        self._steps = 0
        self.played: list[PlayedEpisode] = []
        """Episodes that were shown to their end."""

    @property
    def frames_per_second(self) -> float:
        """At which the pictures look alive."""
        return self._camera.frames_per_second

    def frames(self) -> Iterator[Picture]:
        """All pictures in order, each [H, W, 3] uint8 of the same shape. Raises: EnvironmentFault."""
        try:
            steps = 0
            last: Picture | None = None
            while len(self.played) < self._episodes and steps < self._steps_max and not self._should_stop():
                fragment = self._rollout.collect(lambda _version: None)
                pictures = self._camera.take_pictures()
                if last is None:
                    last = pictures.pop(0)
                    yield self._shown(last, [])
                yield from self._of_fragment(fragment, pictures, last)
                last = pictures[-1]
                steps += fragment.env_steps
        finally:
            self._rollout.close()

    def _of_fragment(self, fragment: Fragment, pictures: list[Picture], last: Picture) -> Iterator[Picture]:
        """One picture for each row, that of the observation after it; rows are those of the only lane."""
        paid, texts = self._heard(fragment)
        columns, ended = fragment.columns, iter(fragment.episodes)
        following = iter(pictures)
        for row in range(int(fragment.rows_per_lane[0])):
            if len(self.played) == self._episodes:
                return
            if columns["role"][0, row] == ROLE_FINAL:  # the next episode's first picture comes with it
                self._return = self._intrinsic = 0.0
                self._steps = 0
                if not self._is_same_step:
                    last = next(following)
                yield self._shown(last, [])
                continue
            is_last = bool(columns["terminated"][0, row] or columns["truncated"][0, row])
            self._return += float(columns["reward"][0, row])
            self._intrinsic += paid[row]
            self._steps += 1
            picture = next(following)
            if is_last and self._is_same_step:  # what it looked like at the end was never drawn
                picture, last = last, picture
            else:
                last = picture
            lines = [_caption_line(texts[row], paid[row], self._rewards is not None)]
            if not is_last:
                yield self._shown(picture, lines)
                continue
            episode = next(ended)
            lines.append(_end_line(episode, terminated=bool(columns["terminated"][0, row])))
            shown = self._shown(picture, lines)
            self.played.append(
                PlayedEpisode(episode.episode_return, episode.length, self._intrinsic, dict(episode.extra))
            )
            for _ in range(max(1, round(_LAST_SECONDS * self.frames_per_second))):
                yield shown

    def _heard(self, fragment: Fragment) -> tuple[list[float], list[str]]:
        """What each row of the lane paid, before the coefficient, and the caption of it."""
        if self._rewards is None:
            self._texts |= {text_hash(caption.text): caption.text for caption in fragment.new_captions}
            texts = [self._texts.get(each, "") for each in fragment.columns["caption_hash"][0].tolist()]
            return [0.0] * len(texts), texts
        ids, table = self._rewards.met(fragment)
        paid, _ = caption_rewards(table, ids, fragment.columns["caption_count"], self._rewards.count_power)
        return paid[0].tolist(), [self._rewards.captions.caption(each).text for each in ids[0].tolist()]

    def _shown(self, picture: Picture, lines: list[Line]) -> Picture:
        stands = f"episode {len(self.played) + 1} of {self._episodes}   step {self._steps}   return {self._return:.4g}"
        if self._rewards is not None:
            stands += f"   captions paid {self._intrinsic:.2f}"
        return with_strip(picture, [Line(stands), *lines], _STRIP_ROWS)


def _caption_line(text: str, paid: float, is_paid_for: bool) -> Line:
    text = " / ".join(text.splitlines())
    if not text:
        return Line("")
    if not is_paid_for:
        return Line(text)
    if paid == 0:
        return Line(f"       {text}", FAINT)
    return Line(f"{paid:+6.2f} {text}", PAID if paid > 0 else FORBIDDEN)


def _end_line(episode: EpisodeStatistics, *, terminated: bool) -> Line:
    success = episode.extra.get("success")
    if success is not None:
        return Line("success", PAID) if success > 0 else Line("no success", FORBIDDEN)
    return Line("end of the episode" if terminated else "time limit", FAINT)
