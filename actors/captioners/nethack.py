"""Captions of NetHack and MiniHack: the game's message line, cut into sentences, its keys (docs/annotation.md).

    b"You kill the newt!  g - 3 rocks.  What do you want to eat? [fgh or ?*] "
      ├ "You kill the newt!"                asked
      ├ "* - # rocks."                      asked; inventory letter and number normalised
      └ "What do you want to eat? [...]"    never asked, worth 0: a prompt

What the agent typed is cut out of the text itself, not just of the keys: answers to prompts, "#" commands,
engravings, and names given to things (``named``, ``called``; the game's own artifact names stay). So a policy cannot
write to its judge. What stays is a name that stands alone ("Q bites!"), as for a companion that was named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onibi.actors.environments.nethack import MESSAGE_PAGES
from onibi.platform.annotation.captions import EMPTY_TEXT
from onibi.platform.config import Settings
from onibi.platform.errors import CaptionError
from onibi.platform.fragment import CaptionText, KeyText

KEY_VERSION = "nethack-3"
"""Changed with every change of the rules below: counts and keys of different versions do not mix."""

_CACHED_MESSAGES = 1 << 16

ARTIFACTS = frozenset(
    {
        "Cleaver",
        "Demonbane",
        "Dragonbane",
        "Excalibur",
        "Fire Brand",
        "Frost Brand",
        "Giantslayer",
        "Grayswandir",
        "Grimtooth",
        "Magicbane",
        "Mjollnir",
        "Ogresmasher",
        "Orcrist",
        "Snickersnee",
        "Sting",
        "Stormbringer",
        "Sunsword",
        "The Eye of the Aethiopica",
        "The Eyes of the Overworld",
        "The Heart of Ahriman",
        "The Longbow of Diana",
        "The Magic Mirror of Merlin",
        "The Master Key of Thievery",
        "The Mitre of Holiness",
        "The Orb of Detection",
        "The Orb of Fate",
        "The Platinum Yendorian Express Card",
        "The Sceptre of Might",
        "The Staff of Aesculapius",
        "The Tsurugi of Muramasa",
        "Trollsbane",
        "Vorpal Blade",
        "Werebane",
    }
)
"""Names that NetHack itself gives. It refuses them from players ("Your hand slips"), so they are not typed."""

_SENTENCE_GAP = re.compile(r"\s{2,}")
# At a page's end alone: in the middle somebody typed it.
_MORE = re.compile(r"\s*--More--\s*$")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# An answer is one character behind the choices, or a whole line where the game asks for a text.
_CHOICE_PROMPT = re.compile(r"^(?P<asked>.*?\?) ?\[(?P<choices>[^\]]*)\](?: \(\S\)| \([^)]*\)\?)?")
_TEXT_PROMPT = re.compile(
    r'^(?:Replace annotation|Search for:|Extended command list search phrase\?|"Hello stranger, who are you\?" -'
    r"|(?:What|Where|Who|Whom|Which|How (?:much|many)|For what|To what|In what|On what|With what"
    r"|Talk to whom|\w+ in what direction|Do you|Are you|Enter|Specify|Replace|Change|Save|Name|Set)\b"
    r"[^?]*\?(?: \(in what direction\))?"
    r"|Adjust letter to what|Call [^:]*:|Count:|Move cursor to [^:.]*[:.]"
    r"|\(For instructions|\(Use |Pick an object\.|Select )"
)
_TYPED_COMMAND = re.compile(r"^#|: unknown extended command")
_ENGRAVED = re.compile(r'(You (?:read|feel the words)):\s*"(?:.*"\.?|.*$)', re.DOTALL)
_ANNOTATED = re.compile(r"^(You remember this level as) .*")
_ASKS_FOR_A_LINE = re.compile(r"\b(?:type|enter|notes)\b")  # "[type the name]", "[5 notes, A-G]"
_GIVEN_NAME = re.compile(r"\b(named|called) (.+)$")
_AFTER_KEPT_NAME = re.compile(r"(?: \([^()]*\))?\)?(?: whispers(?::| something))?[.!?]?")
# Help and far look: the symbol, a gap, and what it stands for. The manual speaks, nothing happened.
_LOOKED_UP = re.compile(r"^(?:\S|\^\S|M-\S|<\w+>)\s{2,}\S|^<space> ")
_HEARSAY = (" It reads:", " whispers:")  # rumors: hundreds of texts about the game, not about this one

_BRACKETED = re.compile(r"\[[^\]]*\]")
_INVENTORY_LETTER = re.compile(r"(?:^|(?<=\s))[a-zA-Z] - ")
_NUMBER = re.compile(r"(?<!\w)[+-]?\d+|\d+")

# Walls and the like, and the interface's own complaints: worth 0 without asking anybody.
_NEVER_ASKED = re.compile(
    r"^(?:It's (?:an? )?(?:wall|solid stone|tree|iron bars)\b"
    r"|You can't move diagonally (?:into|out of) an intact doorway"
    r"|Unknown command|Unknown direction|Invalid direction for|No such command|Can't find dungeon feature"
    r"|Unix NetHack Version|Never mind\.|You don't have that object\.|Noop$|Autopickup:|Looked up: |Ask about '&'"
    r"|Using a menu to show possible targets|'#\w*' command not available"
    r"|Can't open 'rumors' file|Program in disorder!)"  # MiniHack ships no rumors
)
_INTERFACE = re.compile(
    r"^(Unknown command|Unknown direction|Invalid direction|No such command|Can't find dungeon feature)\b.*"
)


@dataclass(frozen=True, kw_only=True)
class NetHackCaptionerSettings(Settings):
    """How messages become captions."""

    kind: Literal["nethack"] = "nethack"
    keys_per_caption: int = 4  # K; 1 keeps only the first sentence
    kept_names: tuple[str, ...] = ()  # names that a level's author gave to things: they stay, as artifact names do

    def __post_init__(self) -> None:
        if not 1 <= self.keys_per_caption <= 32:
            raise ValueError(f"keys_per_caption is {self.keys_per_caption}; it must be 1 to 32")


class NetHackCaptioner:
    """Reads ``message``, uint8 [E, 256], NUL-terminated."""

    Settings: ClassVar[type[NetHackCaptionerSettings]] = NetHackCaptionerSettings

    def __init__(self, settings: NetHackCaptionerSettings) -> None:
        self.settings = settings
        self.observation_keys: tuple[str, ...] = ("message",)
        self.keys_per_caption = settings.keys_per_caption
        self.key_version = KEY_VERSION
        self._kept_names = ARTIFACTS | frozenset(settings.kept_names)
        self._cache: dict[bytes | str, CaptionText] = {b"": EMPTY_TEXT}

    def captions(self, raw: Any, infos: Mapping[str, Any]) -> list[CaptionText]:
        """[E] captions of the message lines, or of all pages where a step showed several.

        Raises: CaptionError where the environment shows no messages.
        """
        messages = raw.get("message") if isinstance(raw, Mapping) else None
        if messages is None or messages.ndim != 2 or messages.dtype != np.uint8:
            raise CaptionError(_no_message(raw, messages))
        envs, width = messages.shape
        pages = infos.get(MESSAGE_PAGES)
        line = messages.tobytes()  # one copy for all lanes: slices of bytes are far cheaper than rows of an array
        found = []
        for start in range(0, envs * width, width):
            # A lane that says nothing, as most do, is told by its first byte.
            message = line[start : start + width].partition(b"\0")[0] if line[start] else b""
            caption = self._cache.get(message)
            found.append(self._read(message) if caption is None else caption)
        if pages is not None:
            for env in np.flatnonzero(infos[f"_{MESSAGE_PAGES}"]).tolist():
                caption = self._cache.get(pages[env])
                found[env] = self._read(pages[env]) if caption is None else caption
        return found

    def _read(self, message: bytes | str) -> CaptionText:
        text = message if isinstance(message, str) else message.decode("latin-1").replace("\n", " ")
        caption = caption_of(text, self.keys_per_caption, self._kept_names)
        if len(self._cache) >= _CACHED_MESSAGES:
            self._cache = {b"": EMPTY_TEXT}
        self._cache[message] = caption
        return caption


def _no_message(raw: Any, messages: Any) -> str:
    if messages is not None:
        found = f"it as {messages.dtype} {list(messages.shape)} instead of uint8 [environments, characters]"
    else:
        found = f"the keys {sorted(raw)}" if isinstance(raw, Mapping) else "one array without keys"
    return (
        f"captioner 'nethack' reads the observation 'message'; this environment gives {found}. Add 'message' to its "
        "observation_keys, or set captioner.kind to 'info' or 'none'"
    )


def caption_of(message: str, keys_per_caption: int, kept_names: frozenset[str]) -> CaptionText:
    """The caption of a message line, without what the agent typed.

    Args:
        message: as NetHack shows it; of several pages each on a line of its own.
        keys_per_caption: K; of more sentences the asked ones come first, then the never-asked, each in their order.
        kept_names: names behind "named" and "called" that were not typed: ``ARTIFACTS`` and a level author's.
    Returns: ``EMPTY_TEXT`` where nothing is left.
    """
    sentences = spoken_sentences(message, kept_names)
    if not sentences:
        return EMPTY_TEXT
    keys: dict[str, KeyText] = {}
    for sentence, is_prompt in sentences:
        text = key_text(sentence)
        keys.setdefault(text, KeyText(text, askable=not is_prompt and _NEVER_ASKED.match(sentence) is None))
    ordered = sorted(keys.values(), key=lambda key: not key.askable)  # stable: within each kind as in the message
    return CaptionText("  ".join(sentence for sentence, _ in sentences), tuple(ordered[:keys_per_caption]))


def spoken_sentences(message: str, kept_names: frozenset[str]) -> list[tuple[str, bool]]:
    """What the game said, each sentence with whether it is a prompt; typed text is cut out. Pages stand on lines."""
    spoken: list[tuple[str, bool]] = []
    for page in message.split("\n"):
        for sentence, is_prompt in _spoken_on_page(page, kept_names):
            before = "" if is_prompt or not spoken or spoken[-1][1] else spoken[-1][0]
            if f" {before}".endswith(_HEARSAY):
                spoken[-1] = (f"{before[:-1]} something.", False)
            elif _goes_on(before, sentence):
                spoken[-1] = (f"{before} {sentence}", False)
            else:
                spoken.append((sentence, is_prompt))
    return spoken


def _goes_on(before: str, sentence: str) -> bool:
    """Whether what stands behind two blanks or on the next page belongs to a sentence: speech, lists, a status."""
    if before.endswith(":"):
        return sentence[0] == '"' or sentence[0].islower() or before.startswith("Status of ")
    return before.startswith("Status of ") and not before.endswith(".")


def _spoken_on_page(message: str, kept_names: frozenset[str]) -> list[tuple[str, bool]]:
    message = _MORE.sub("", message.strip())
    if _TYPED_COMMAND.search(message):
        return []
    message = _UNPRINTABLE.sub(" ", message)
    if _LOOKED_UP.match(message):
        return [(f"Looked up: {without_given_name(' '.join(message.split()), kept_names)}", False)]
    message = _ENGRAVED.sub(r"\1 what is written.", message)
    spoken = []
    for part in _SENTENCE_GAP.split(message):
        sentence = without_given_name(_ANNOTATED.sub(r"\1 something.", part), kept_names)
        choice, text_prompt = _CHOICE_PROMPT.match(sentence), _TEXT_PROMPT.match(sentence)
        # Behind a text prompt's own end somebody may have typed choices.
        if choice is not None and (text_prompt is None or len(text_prompt[0]) >= len(choice["asked"])):
            spoken.append((f"{choice['asked']} [{choice['choices']}]", True))
            if _ASKS_FOR_A_LINE.search(choice["choices"]):
                break
            continue
        if text_prompt is not None:
            spoken.append((text_prompt[0], True))
            break  # all that follows was typed, whatever it looks like
        if sentence.strip():
            spoken.append((sentence.strip(), False))
    return spoken


def without_given_name(sentence: str, kept_names: frozenset[str]) -> str:
    """A sentence, cut and ended with "something." where a name that was typed begins."""
    found = _GIVEN_NAME.search(sentence)
    if found is None:
        return sentence
    for name in kept_names:
        if found[2].startswith(name) and _AFTER_KEPT_NAME.fullmatch(found[2][len(name) :]):
            return sentence
    # A name may hold anything, full stops too, so the sentence ends here; but no two blanks: NetHack joins them.
    return f"{sentence[: found.start(2)]}something."


def key_text(sentence: str) -> str:
    """A sentence as a key: numbers "#", inventory letters "* - ", bracketed lists "[...]", complaints cut short."""
    sentence = _INTERFACE.sub(r"\1.", sentence)
    sentence = _BRACKETED.sub("[...]", sentence)
    sentence = _INVENTORY_LETTER.sub("* - ", sentence)
    return _NUMBER.sub("#", sentence)
