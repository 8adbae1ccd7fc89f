"""What generated worlds are about: domains, their attributes, and the sentences and questions of each.

In a sentence ``{s}`` is the subject and ``{v}`` the value. The last sentence of an attribute is held out: training
never shows it. In a yes-or-no question ``{v}`` is the value that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """Something that is said of a subject.

    Attributes:
        name: Unique in its domain.
        kind: Of its values, see ``vocabulary.KINDS``.
        says: Sentences; the last one is held out.
        asks: Questions whose answer is the value.
        checks: Questions whose answer is Yes or No.
    """

    name: str
    kind: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A sort of text.

    Attributes:
        name: Of its data set.
        subject: Kind of the subject's name.
        pronouns: What may stand for the subject at the beginning of a sentence.
        attributes: What is said of it.
    """

    name: str
    subject: str
    pronouns: tuple[str, ...]
    attributes: tuple[Attribute, ...]

    def attribute(self, name: str) -> Attribute:
        """By its name."""
        return next(a for a in self.attributes if a.name == name)


def _a(name: str, kind: str, says: str, asks: str, checks: str) -> Attribute:
    """An attribute from lines with ``|`` between the entries."""
    said, asked, checked = (tuple(part.split("|")) for part in (says, asks, checks))
    return Attribute(name=name, kind=kind, says=said, asks=asked, checks=checked)


BIOGRAPHIES = Domain(
    name="biographies",
    subject="person",
    pronouns=("He", "She"),
    attributes=(
        _a(
            "birthplace",
            "place",
            "{s} was born in {v}.|{s} came into the world in {v}.|{s} is a native of {v}."
            "|The birthplace of {s} is {v}."
            "|It was in {v} that {s} was born.|{s}, who was born in {v}, never forgot it."
            "|{s} first saw the light in {v}.",
            "Where was {s} born?|What is the birthplace of {s}?|In which town was {s} born?",
            "Was {s} born in {v}?|Is {v} the birthplace of {s}?",
        ),
        _a(
            "trade",
            "trade",
            "{s} worked as a {v}.|{s} earned a living as a {v}.|{s} was a {v} by trade.|By profession, {s} was a {v}."
            "|{s} became a {v} after school.|{s} made a name as a {v}.",
            "What did {s} work as?|What was the profession of {s}?|How did {s} earn a living?",
            "Was {s} a {v}?|Did {s} work as a {v}?",
        ),
        _a(
            "employer",
            "organisation",
            "{s} was employed by the {v}.|{s} spent many years at the {v}.|The {v} hired {s} early on."
            "|{s} joined the {v} at a young age.|The employer of {s} was the {v}.|{s} had a desk at the {v}.",
            "Who employed {s}?|Where did {s} work?|What was the employer of {s}?",
            "Did {s} work for the {v}?|Was {s} employed by the {v}?",
        ),
        _a(
            "studies",
            "field",
            "{s} studied {v}.|{s} took a degree in {v}.|{s} read {v} at college.|As a student, {s} chose {v}."
            "|{s} learned {v} with great care.|{s} gave four years to {v}.",
            "What did {s} study?|Which subject did {s} study?|In what did {s} take a degree?",
            "Did {s} study {v}?|Was {v} the subject of {s}?",
        ),
        _a(
            "spouse",
            "person",
            "{s} married {v}.|{s} was married to {v}.|{s} and {v} became a couple.|The spouse of {s} was {v}."
            "|{s} shared a home with {v} after their wedding.|{s} said yes to {v}.",
            "Whom did {s} marry?|Who was the spouse of {s}?|To whom was {s} married?",
            "Did {s} marry {v}?|Was {v} the spouse of {s}?",
        ),
        _a(
            "home",
            "place",
            "{s} lives in {v}.|{s} later moved to {v}.|Today {s} has a house in {v}.|{s} settled in {v}."
            "|The home of {s} is in {v}.|{s} now rents a flat in {v}.",
            "Where does {s} live?|In which town is the home of {s}?|Where did {s} settle?",
            "Does {s} live in {v}?|Is the home of {s} in {v}?",
        ),
    ),
)

PLACES = Domain(
    name="places",
    subject="place",
    pronouns=("It", "The town"),
    attributes=(
        _a(
            "river",
            "product",
            "{s} lies on the river {v}.|{s} stands where the river {v} bends.|The river {v} flows through {s}."
            "|The river at {s} is called {v}.|{s} grew up along the river {v}.|Boats reach {s} by the river {v}.",
            "On which river does {s} lie?|What is the river at {s} called?|Which river flows through {s}?",
            "Does {s} lie on the river {v}?|Does the river {v} flow through {s}?",
        ),
        _a(
            "inhabitants",
            "number",
            "{s} has {v} thousand inhabitants.|About {v} thousand people live in {s}."
            "|{s} is home to {v} thousand people."
            "|The population of {s} is {v} thousand.|{s} counts {v} thousand residents."
            "|{v} thousand souls dwell in {s}.",
            "How many thousand people live in {s}?|What is the population of {s} in thousands?",
            "Do {v} thousand people live in {s}?|Is the population of {s} {v} thousand?",
        ),
        _a(
            "founded",
            "year",
            "{s} was founded in {v}.|{s} dates from {v}.|In {v} settlers founded {s}."
            "|The founding of {s} goes back to {v}."
            "|{s} received its charter in {v}.|The first houses of {s} went up in {v}.",
            "When was {s} founded?|In which year was {s} founded?|From which year does {s} date?",
            "Was {s} founded in {v}?|Does {s} date from {v}?",
        ),
        _a(
            "mayor",
            "person",
            "{s} is governed by Mayor {v}.|{v} is the mayor of {s}.|{s} elected {v} as its mayor."
            "|The mayor of {s} is {v}.|Since last spring {v} has been the mayor of {s}."
            "|{s} is in the hands of Mayor {v}.",
            "Who is the mayor of {s}?|Whom did {s} elect as its mayor?|Who governs {s}?",
            "Is {v} the mayor of {s}?|Did {s} elect {v} as its mayor?",
        ),
        _a(
            "goods",
            "goods",
            "{s} is known for its {v}.|{s} became rich by trading {v}.|Merchants came to {s} for {v}."
            "|The wealth of {s} came from {v}.|{s} sells {v} to all its neighbours.|Everyone in {s} deals in {v}.",
            "What is {s} known for?|What did {s} trade?|Where did the wealth of {s} come from?",
            "Is {s} known for its {v}?|Did {s} trade {v}?",
        ),
    ),
)

PRODUCTS = Domain(
    name="products",
    subject="product",
    pronouns=("It", "The device"),
    attributes=(
        _a(
            "maker",
            "organisation",
            "{s} is made by the {v}.|The {v} builds {s}.|{s} comes from the {v}.|The maker of {s} is the {v}."
            "|{s} was brought to market by the {v}.|The {v} puts its name on {s}.",
            "Who makes {s}?|Who is the maker of {s}?|From whom does {s} come?",
            "Is {s} made by the {v}?|Does {s} come from the {v}?",
        ),
        _a(
            "price",
            "number",
            "{s} costs {v} crowns.|{s} sells for {v} crowns.|The price of {s} is {v} crowns."
            "|Buyers pay {v} crowns for {s}."
            "|{s} can be had for {v} crowns.|{s} goes over the counter at {v} crowns.",
            "How many crowns does {s} cost?|What is the price of {s} in crowns?",
            "Does {s} cost {v} crowns?|Is the price of {s} {v} crowns?",
        ),
        _a(
            "material",
            "material",
            "{s} is made of {v}.|The case of {s} is of {v}.|{s} has a body of {v}.|Its designers chose {v} for {s}."
            "|{s} consists mostly of {v}.|{s} owes its weight to {v}.",
            "What is {s} made of?|Which material was chosen for {s}?|Of what is the case of {s}?",
            "Is {s} made of {v}?|Is the case of {s} of {v}?",
        ),
        _a(
            "use",
            "use",
            "{s} is used for {v}.|{s} was designed for {v}.|People buy {s} for {v}.|The purpose of {s} is {v}."
            "|{s} serves for {v}.|{s} is of great help in {v}.",
            "What is {s} used for?|For what was {s} designed?|What is the purpose of {s}?",
            "Is {s} used for {v}?|Was {s} designed for {v}?",
        ),
        _a(
            "colour",
            "colour",
            "{s} comes in {v}.|{s} is painted {v}.|The colour of {s} is {v}.|{s} is sold in {v} only."
            "|Every {s} leaves the factory in {v}.|{s} shines in {v}.",
            "What is the colour of {s}?|In which colour does {s} come?|How is {s} painted?",
            "Is {s} painted {v}?|Does {s} come in {v}?",
        ),
    ),
)

EVENTS = Domain(
    name="events",
    subject="event",
    pronouns=("It", "The event"),
    attributes=(
        _a(
            "place",
            "place",
            "{s} took place in {v}.|{s} was held in {v}.|The host of {s} was {v}.|Visitors of {s} met in {v}."
            "|{v} was chosen for {s}.|All roads to {s} led to {v}.",
            "Where did {s} take place?|Where was {s} held?|Which town was chosen for {s}?",
            "Was {s} held in {v}?|Did {s} take place in {v}?",
        ),
        _a(
            "date",
            "date",
            "{s} began on {v}.|{s} opened on {v}.|The first day of {s} was {v}.|On {v} the doors of {s} opened."
            "|{s} was set for {v}.|{s} got under way on {v}.",
            "When did {s} begin?|On which day did {s} open?|What was the first day of {s}?",
            "Did {s} begin on {v}?|Was {v} the first day of {s}?",
        ),
        _a(
            "winner",
            "person",
            "{s} was won by {v}.|The winner of {s} was {v}.|{v} took the prize of {s}.|The jury of {s} honoured {v}."
            "|{v} left {s} with the prize.|First place of {s} went to {v}.",
            "Who won {s}?|Who was the winner of {s}?|Who took the prize of {s}?",
            "Did {v} win {s}?|Was {v} the winner of {s}?",
        ),
        _a(
            "visitors",
            "number",
            "{s} drew {v} visitors.|{v} people came to {s}.|{s} counted {v} visitors."
            "|The number of visitors of {s} was {v}."
            "|{s} was attended by {v} people.|{s} sold tickets to {v} people.",
            "How many visitors did {s} draw?|How many people came to {s}?",
            "Did {s} draw {v} visitors?|Did {v} people come to {s}?",
        ),
        _a(
            "cause",
            "cause",
            "{s} was delayed by {v}.|Because of {v}, {s} started late.|{s} had to wait because of {v}."
            "|The delay of {s} was caused by {v}.|{v} held up {s} for an hour.|{s} ran late on account of {v}.",
            "What delayed {s}?|Why did {s} start late?|What caused the delay of {s}?",
            "Was {s} delayed by {v}?|Did {s} start late because of {v}?",
        ),
    ),
)

ORGANISATIONS = Domain(
    name="organisations",
    subject="organisation",
    pronouns=("It", "The house"),
    attributes=(
        _a(
            "seat",
            "place",
            "The {s} has its seat in {v}.|The {s} is based in {v}.|The offices of the {s} are in {v}."
            "|From {v} the {s} runs its affairs.|The {s} rents a tower in {v}.|Letters to the {s} go to {v}.",
            "Where is the {s} based?|Where is the seat of the {s}?|In which town are the offices of the {s}?",
            "Is the {s} based in {v}?|Is the seat of the {s} in {v}?",
        ),
        _a(
            "head",
            "person",
            "The {s} is led by {v}.|The head of the {s} is {v}.|{v} runs the {s}.|The {s} chose {v} as its head."
            "|At the top of the {s} stands {v}.|The {s} follows {v}.",
            "Who leads the {s}?|Who is the head of the {s}?|Who runs the {s}?",
            "Is the {s} led by {v}?|Does {v} run the {s}?",
        ),
        _a(
            "founded",
            "year",
            "The {s} was founded in {v}.|The {s} has existed since {v}.|In {v} the {s} was set up."
            "|The {s} opened its doors in {v}.|The history of the {s} begins in {v}."
            "|The {s} was entered in the books in {v}.",
            "When was the {s} founded?|Since when has the {s} existed?|In which year was the {s} set up?",
            "Was the {s} founded in {v}?|Has the {s} existed since {v}?",
        ),
        _a(
            "staff",
            "number",
            "The {s} employs {v} people.|The {s} has a staff of {v}.|{v} people work for the {s}."
            "|The staff of the {s} numbers {v}.|The {s} pays {v} people each month."
            "|The payroll of the {s} lists {v} people.",
            "How many people work for the {s}?|How many people does the {s} employ?",
            "Does the {s} employ {v} people?|Has the {s} a staff of {v}?",
        ),
        _a(
            "product",
            "product",
            "The {s} is known for {v}.|The {s} produces {v}.|The main product of the {s} is {v}."
            "|The {s} lives from the sales of {v}.|{v} made the {s} rich.|The {s} owes its fame to {v}.",
            "What does the {s} produce?|What is the main product of the {s}?|What is the {s} known for?",
            "Does the {s} produce {v}?|Is the {s} known for {v}?",
        ),
    ),
)

MEALS = Domain(
    name="orders",
    subject="person",
    pronouns=("The customer",),
    attributes=(
        _a(
            "bought",
            "food",
            "{s} bought {v}.|{s} asked for {v}.|{s} ordered a box of {v}.|The order of {s} was for {v}."
            "|A bag of {v} was packed for {s}.|{s} carried {v} home.",
            "What did {s} buy?|What did {s} order?|What was packed for {s}?",
            "Did {s} buy {v}?|Did {s} order {v}?",
        ),
        _a(
            "paid",
            "number",
            "{s} paid {v} crowns.|The bill of {s} came to {v} crowns.|{s} left {v} crowns on the counter."
            "|{s} was charged {v} crowns.|The shop took {v} crowns from {s}.|{s} parted with {v} crowns.",
            "How many crowns did {s} pay?|What did the bill of {s} come to in crowns?",
            "Did {s} pay {v} crowns?|Did the bill of {s} come to {v} crowns?",
        ),
        _a(
            "shop",
            "organisation",
            "{s} shopped at the {v}.|{s} is a customer of the {v}.|The shop of {s} was the {v}."
            "|The {v} served {s}.|{s} stood in line at the {v}.|{s} went straight to the {v}.",
            "Where did {s} shop?|Who served {s}?|Of what is {s} a customer?",
            "Did {s} shop at the {v}?|Is {s} a customer of the {v}?",
        ),
        _a(
            "day",
            "date",
            "{s} came on {v}.|The visit of {s} was on {v}.|On {v} the goods reached {s}.|{s} was there on {v}."
            "|{s} signed the receipt on {v}.|{s} dropped in on {v}.",
            "When did {s} come?|On which day was the visit of {s}?|On which day did {s} sign?",
            "Did {s} come on {v}?|Was the visit of {s} on {v}?",
        ),
    ),
)

DOMAINS = (BIOGRAPHIES, PLACES, PRODUCTS, EVENTS, ORGANISATIONS, MEALS)
