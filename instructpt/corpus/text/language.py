"""A guess at a text's language: by its script, and among Latin letters by the most frequent function words.

A heuristic without a model. It knows the languages of ``LANGUAGES`` only, takes every other language of a script for
the one it lists, and says ``UNKNOWN`` rather than guess on short or mixed text. Other languages in Latin letters are
mostly ``UNKNOWN``. Who needs more brings a filter of their own (docs/user-guides/filters.md).
"""

from __future__ import annotations

from collections import Counter

from instructpt.corpus.text.words import words_of

UNKNOWN = "und"
SAMPLE_CHARACTERS = 4000
_MIN_LETTERS = 12
_MIN_HITS = 3
_MIN_SHARE = 0.06
_MARGIN = 1.25
_MAIN_SCRIPT = 0.6

_FUNCTION_WORDS = {
    "da": "og i at det er en den til som på de med af for ikke der et har han jeg var fra vi kan når hvor eller blev",
    "de": "der die das und ist in den nicht ein eine mit von zu auf für dem des sich auch als es wird sind werden "
    "wurde oder bei nach aus",
    "en": "the of and to in is that it was for on are as with be at by this have from or an which not were but their",
    "es": "el la de que y en los del las un una por con para es se su no al lo como más pero fue sus son entre cuando",
    "fr": "le la les de des et est en un une du dans que pour qui sur pas au avec par ce il sont se plus cette ou aux",
    "it": "il di che la e un una in del della per non con sono si da le dei è al come nel più alla gli anche lo questo",
    "nl": "de het een van en in is dat op te zijn met voor niet die aan er om als ook door bij maar worden wordt naar",
    "pl": "i w na z się nie że do jest to o jak przez dla od po przy lub oraz są być który która które jego był",
    "pt": "o a de que e do da em um uma os para com não por se na no dos das ao mais como foi são pelo pela seu",
    "sv": "och i att det är en ett som på av för med den till inte de om har han var från vi kan eller när där blev",
}
_WORDS = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}

# Blocks of code points and their script.
_RANGES = (
    (0x0041, 0x024F, "latin"),
    (0x1E00, 0x1EFF, "latin"),
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x052F, "cyrillic"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "hi"),
    (0x0E00, 0x0E7F, "th"),
    (0x1100, 0x11FF, "ko"),
    (0xAC00, 0xD7AF, "ko"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x4DBF, "han"),
    (0x4E00, 0x9FFF, "han"),
)
LANGUAGES = tuple(sorted([*_WORDS, "ar", "el", "fa", "he", "hi", "ja", "ko", "ru", "th", "uk", "zh"]))


def language_of(text: str) -> str:
    """The language of a text as ISO 639-1 code out of ``LANGUAGES``, or ``UNKNOWN`` where it cannot be told.

    Only the first ``SAMPLE_CHARACTERS`` characters are looked at.
    """
    sample = text[:SAMPLE_CHARACTERS].casefold()
    letters = Counter(character for character in sample if character.isalpha())
    scripts: Counter[str] = Counter()
    for character, count in letters.items():
        scripts[_script(ord(character))] += count
    # One character of Japanese or Chinese carries about as much as two letters.
    scripts["cjk"] = 2 * (scripts["kana"] + scripts["han"])
    kana = scripts.pop("kana", 0)
    scripts.pop("han", None)
    main, count = max(scripts.items(), key=lambda item: (item[1], item[0]))
    if count < _MIN_LETTERS or count < _MAIN_SCRIPT * sum(scripts.values()):
        return UNKNOWN
    if main == "cjk":
        return "ja" if 2 * kana > 0.1 * count else "zh"
    if main == "latin":
        return _latin(words_of(sample))
    if main == "cyrillic":
        return "uk" if _any(letters, "іїєґ") > _any(letters, "ыэъё") else "ru"
    if main == "arabic":
        return "fa" if _any(letters, "پچژگ") else "ar"
    return main if main in LANGUAGES else UNKNOWN


def _script(point: int) -> str:
    return next((name for low, high, name in _RANGES if low <= point <= high), "other")


def _any(letters: Counter[str], wanted: str) -> int:
    return sum(letters[character] for character in wanted)


def _latin(words: list[str]) -> str:
    hits = {name: sum(word in known for word in words) for name, known in _WORDS.items()}
    (best, most), (_, second) = sorted(hits.items(), key=lambda item: (-item[1], item[0]))[:2]
    if most < max(_MIN_HITS, _MIN_SHARE * len(words)) or most < _MARGIN * second:
        return UNKNOWN
    return best


def function_words() -> frozenset[str]:
    """Function words of all languages known here: words that carry no content."""
    return _ALL


_ALL = frozenset().union(*_WORDS.values())
