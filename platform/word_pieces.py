"""Words and word pieces of BERT's uncased models, as ids: what their networks read instead of text.

Devlin et al., "BERT", arXiv 1810.04805; pieces as Wu et al., arXiv 1609.08144: the longest piece of the vocabulary that
a word begins with, then the longest one that goes on, and so forth.

Difference from the reference: a text cannot name the special tokens. "[SEP]" in a caption is a bracket, a word and a
bracket here, where the ``tokenizers`` library takes it for the separator.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from onibi.platform.errors import ConfigError

_CONTINUED = "##"
_LONGEST_WORD = 100  # characters; what is longer is one unknown piece
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieces:
    """Texts to ids of one vocabulary.

    Args:
        vocabulary: pieces in the order of their ids; "##" begins one that continues a word.
        source: what messages call it.
    Raises: ConfigError where a special token is missing.
    """

    def __init__(self, vocabulary: Sequence[str], source: str = "vocabulary") -> None:
        self._ids = {piece: index for index, piece in enumerate(vocabulary)}
        missing = [token for token in ("[CLS]", "[SEP]", "[UNK]", "[PAD]") if token not in self._ids]
        if missing:
            raise ConfigError(
                f"{source}: the tokens {', '.join(missing)} are missing among {len(self._ids)} pieces; is it the "
                "vocab.txt of an uncased BERT?"
            )
        self.padding = self._ids["[PAD]"]

    @classmethod
    def read(cls, path: Path) -> WordPieces:
        """The vocabulary of a model's ``vocab.txt``. Raises: ConfigError where it cannot be read."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a vocabulary ({error})") from error
        return cls(lines[:-1] if lines and not lines[-1] else lines, str(path))

    def encode(self, text: str, most: int) -> list[int]:
        """Ids of [CLS], the text's pieces and [SEP]; ``most`` of them at most, the text's end is cut off."""
        unknown = self._ids["[UNK]"]
        pieces: list[int] = []
        for word in words_of(text):
            pieces += self._pieces(word) or [unknown]
            if len(pieces) >= most - 2:
                break
        return [self._ids["[CLS]"], *pieces[: most - 2], self._ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        """Ids of a word's pieces; [] where some part of it is in no piece."""
        if len(word) > _LONGEST_WORD:
            return []
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get((_CONTINUED if start else "") + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return []
        return found


def words_of(text: str) -> list[str]:
    """Lower-case words without accents; every punctuation mark and every Chinese character is a word of its own."""
    spaced = "".join(_cleaned(text))
    decomposed = unicodedata.normalize("NFD", spaced)
    # Each character by itself, as the library does: a word as a whole would have its last Σ become ς.
    plain = "".join(char.lower() for char in decomposed if unicodedata.category(char) != "Mn")
    words: list[str] = []
    for run in plain.split():
        word = ""
        for char in run:
            if _is_punctuation(char):
                words += [word, char] if word else [char]
                word = ""
            else:
                word += char
        if word:
            words.append(word)
    return words


def _cleaned(text: str) -> Iterator[str]:
    for char in text:
        if char in "\t\n\r" or unicodedata.category(char) == "Zs":
            yield " "
        elif char == "\ufffd" or unicodedata.category(char).startswith("C"):
            continue
        elif any(low <= ord(char) <= high for low, high in _CJK):
            yield f" {char} "
        else:
            yield char


def _is_punctuation(char: str) -> bool:
    code = ord(char)
    # All of ASCII that is neither letter nor digit, "$" and "^" too, whatever Unicode says of them.
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")
