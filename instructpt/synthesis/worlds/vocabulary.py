"""Names and values of generated worlds: an open vocabulary, with names that training never shows.

Names are made of syllables, so that a model must copy them from a document rather than recall them. A name is held out
by a hash of itself: whoever draws from one side never meets a name of the other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

HELD_OUT_SHARE = 10
"""One name in so many is held out."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_ONSETS = _words("b|br|c|ch|d|dr|f|fl|g|gr|h|j|k|kl|l|m|n|p|pr|qu|r|s|sh|sk|sl|st|t|th|tr|v|w|z")
_VOWELS = _words("a|e|i|o|u|ai|ea|ie|oa|ou")
_CODAS = _words("b|ck|d|ff|g|l|ld|ll|m|n|nd|ng|nt|p|r|rd|rk|rn|rt|s|ss|st|t|th|x")
_PLACE_ENDS = _words("ford|ham|ville|burgh|mouth|wick|stead|port|field|haven|dale|bridge")
_ORG_ENDS = _words("Institute|Works|Society|Trust|Brothers|College|Group|Guild|Laboratory|Press")
_EVENT_ENDS = _words("Fair|Festival|Race|Congress|Contest|Games")
_PRODUCT_ENDS = _words("ix|ora|eon|ium|ette|ado|ia|us")
_MONTHS = _words("January|February|March|April|May|June|July|August|September|October|November|December")

TRADES = _words(
    "baker|sailor|surgeon|potter|teacher|painter|farmer|lawyer|pilot|tailor|carpenter|chemist|singer|translator|"
    "gardener|geologist|printer|nurse|architect|weaver"
)
COLOURS = _words("red|blue|green|yellow|white|black|brown|grey|orange|purple|silver|pink")
MATERIALS = _words("oak|steel|glass|copper|wool|leather|bamboo|clay|linen|marble|paper|rubber|brass|stone|cotton")
FIELDS = _words("history|botany|medicine|geometry|astronomy|music|law|chemistry|grammar|logic|zoology|economics")
FOODS = _words("apples|bread|cheese|olives|rice|honey|salmon|tea|walnuts|lentils|pears|mushrooms")
GOODS = _words("salt|tin|wool|timber|grain|silk|coal|wine|amber|pottery|sugar|iron")
USES = _words(
    "cutting paper|drying herbs|lighting tents|weighing letters|sharpening knives|storing seeds|heating water|"
    "cleaning lenses|measuring wind|mending nets|copying maps|filtering oil"
)
CAUSES = _words("a storm|a strike|a fire|a flood|a power cut|heavy fog|a late train|a broken pump")


class Vocabulary:
    """Draws names and values.

    Args:
        rng: Source of every choice.
        held_out: Whether names are those that training never shows, or those it does.
    """

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self._rng = rng
        self._held_out = held_out

    def draw(self, kind: str) -> str:
        """A value of a kind, one of ``KINDS``."""
        return KINDS[kind](self)

    def _name(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if is_held_out(name) == self._held_out:
                return name

    def _word(self, syllables: int) -> str:
        pick = self._rng.choice
        parts = [pick(_ONSETS) + pick(_VOWELS) for _ in range(syllables)]
        return ("".join(parts) + pick(_CODAS)).capitalize()

    def first_name(self) -> str:
        """Such as Brea or Tholu."""
        pick = self._rng.choice
        return self._name(lambda: (pick(_ONSETS) + pick(_VOWELS) + pick(_ONSETS) + pick("aeiou")).capitalize())

    def last_name(self) -> str:
        """Such as Skaild."""
        return self._name(lambda: self._word(self._rng.choice((1, 2))))

    def person(self) -> str:
        """First and last name."""
        return f"{self.first_name()} {self.last_name()}"

    def place(self) -> str:
        """A town."""
        return self._name(lambda: self._word(1) + self._rng.choice(_PLACE_ENDS))

    def organisation(self) -> str:
        """A firm or a body."""
        return self._name(lambda: f"{self._word(self._rng.choice((1, 2)))} {self._rng.choice(_ORG_ENDS)}")

    def product(self) -> str:
        """A product's name."""
        return self._name(lambda: self._word(1) + self._rng.choice(_PRODUCT_ENDS))

    def event(self) -> str:
        """A fair, a race or the like."""
        return f"the {self._name(lambda: self._word(self._rng.choice((1, 2))))} {self._rng.choice(_EVENT_ENDS)}"

    def year(self) -> str:
        """A year."""
        return str(self._rng.randrange(1700, 2030))

    def date(self) -> str:
        """A day and a month."""
        return f"{self._rng.randrange(1, 29)} {self._rng.choice(_MONTHS)}"

    def number(self) -> str:
        """From 2 to 999."""
        return str(self._rng.randrange(2, 10 ** self._rng.choice((1, 2, 3)) + 2))

    def one_of(self, words: tuple[str, ...]) -> str:
        """A word of a closed class."""
        return self._rng.choice(words)


KINDS: Mapping[str, Callable[[Vocabulary], str]] = MappingProxyType(
    {
        "person": Vocabulary.person,
        "place": Vocabulary.place,
        "organisation": Vocabulary.organisation,
        "product": Vocabulary.product,
        "event": Vocabulary.event,
        "year": Vocabulary.year,
        "date": Vocabulary.date,
        "number": Vocabulary.number,
        "trade": lambda v: v.one_of(TRADES),
        "colour": lambda v: v.one_of(COLOURS),
        "material": lambda v: v.one_of(MATERIALS),
        "field": lambda v: v.one_of(FIELDS),
        "food": lambda v: v.one_of(FOODS),
        "goods": lambda v: v.one_of(GOODS),
        "use": lambda v: v.one_of(USES),
        "cause": lambda v: v.one_of(CAUSES),
    }
)


def is_held_out(name: str) -> bool:
    """Whether a name belongs to those that training never shows."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_SHARE == 0
