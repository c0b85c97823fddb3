"""A small invented world: people, towns, companies, books, rivers and ships that never existed.

Facts made here are free of licences, unlimited, and cannot be known without reading the passage,
so an answer proves that memory was read. Entities are split by a hash of their name: training data
never contains an entity of the held-out part. Knows nothing of models, tokenisers or files.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST_NAMES = """
Mara Tobin Elsa Jonas Petra Ruben Clara Anton Hilda Oscar Nadia Felix Greta Viktor Ines
Marek Tessa Bruno Livia Casper Dora Emil Frida Gideon Hanna Igor Judith Konrad Leona
Milan Nora Otto Paula Quentin Rosa Stefan Thea Ulrich Vera Walter Yara Zeno Agnes Boris
Celia Dario Edith Fabian Gilda Hector Irma Jasper Katja Lorenz Mina Nestor Olga Pavel
Renata Silas Tilda Urban Wanda Xenia""".split()
FEMALE = frozenset(
    """Mara Elsa Petra Clara Hilda Nadia Greta Ines Tessa Livia Dora Frida Hanna Judith Leona
Nora Paula Rosa Thea Vera Yara Agnes Celia Edith Gilda Irma Katja Mina Olga Renata Tilda
Wanda Xenia""".split()
)
SURNAME_HEADS = """
Vel Mor Ost Kal Bren Tar Hol Sten Lind Grav Fen Dor Wes Nor Pel Rad Sor Tul Ves Yor Zan
Bol Cor Dun Fal Gor Hax Jar Kes Lom""".split()
SURNAME_TAILS = """
den mond berg wick ström ridge hart vale ner sen ton ley mann dahl ford gren holt kamp
lin mark nagel quist rath stad thorn ulf voss wald zell dorf""".split()
TOWN_HEADS = """
Alder Birch Copper Dusk Elm Frost Glen Haven Iron Juniper Kings Larch Maple North Oak
Pine Quarry Raven Silver Thistle Umber Violet Winter Yarrow Amber Bramble Cedar Drift
Ember Falcon""".split()
TOWN_TAILS = """
bury field gate haven mere moor port stead ton wick bridge combe crest dale fall ford
grove hill hollow mouth ness ridge shore vale wood worth minster reach barrow cliff""".split()
COMPANY_KINDS = (
    "Mills Optics Works Foundry Instruments Textiles Dairy Printing Shipyard Ceramics".split()
)
BOOK_ADJECTIVES = """
Silent Crooked Golden Hidden Broken Distant Empty Burning Frozen Gentle Hollow Last
Little Long Lost Narrow Painted Patient Pale Quiet Scarlet Second Secret Seventh
Sleeping Stolen Sunken Twisted Unwritten Wandering""".split()
BOOK_NOUNS = """
Lantern Orchard Compass Garden Harbour Ladder Mirror Needle Oven Parade Quarry Railway
Sparrow Tailor Umbrella Valley Window Anchor Bakery Cellar Drummer Envelope Ferry
Glacier Hammer Island Jacket Kettle Locksmith Meadow""".split()
RIVER_HEADS = """
Aru Belo Cavi Deru Eska Foli Garo Helu Iska Jora Kelu Lavo Miru Neva Orlo Peri Rilo Savu
Teno Uvra Velo Wira Yelu Zaro""".split()
RIVER_TAILS = "ba da fa ga ka la ma na pa ra sa ta va za ndra sk lle nto".split()
SHIP_NAMES_A = "Royal Northern Brave Swift Merry Grey Bold Blue Proud Lucky Eastern Noble".split()
SHIP_NAMES_B = """
Heron Otter Petrel Dolphin Lynx Gull Badger Marten Osprey Pelican Sturgeon Walrus Curlew
Seal Puffin Swan""".split()

JOBS = """
baker surgeon painter carpenter judge pilot chemist gardener locksmith librarian
engineer teacher photographer tailor sculptor astronomer butcher translator clockmaker
botanist diver architect glassblower dentist mathematician blacksmith potter journalist
beekeeper geologist""".split()
INSTRUMENTS = """
violin flute cello trumpet harp piano oboe accordion guitar clarinet drum lute banjo
organ bassoon mandolin""".split()
PRODUCTS = """
cheese clocks carpets honey lace paper glass bicycles pottery cider candles soap knives
umbrellas boots pianos salt silk tiles mustard ropes lamps barrels gloves hats marmalade
kettles violins saddles maps""".split()
MONTHS = """
January February March April May June July August September October November December""".split()
GENRES = """
smuggling astronomy marriage gardening war friendship music winter cooking chess revenge
medicine exile weaving sailing memory forgery famine""".split()
FISH = "trout pike salmon perch carp eel bream tench grayling sturgeon".split()
COLOURS = "red green white black yellow purple orange brown silver crimson turquoise ivory".split()
CARGO = (
    "timber coal wool sugar tea copper cotton wine grain marble tobacco spices leather iron".split()
)

HELD_OUT_SHARE = 20  # one entity in this many is held out


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity: its value, a sentence stating it, and a question asking it."""

    attribute: str
    value: str
    sentence: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One entity with its facts. `text` is the passage; `title` the entity's name."""

    kind: str
    title: str
    text: str
    facts: tuple[Fact, ...]


def person(rng: random.Random) -> str:
    """A full name; some 57,000 are possible."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAME_HEADS)}{rng.choice(SURNAME_TAILS)}"


def town(rng: random.Random) -> str:
    """A town's name; 900 are possible."""
    return rng.choice(TOWN_HEADS) + rng.choice(TOWN_TAILS)


def company(rng: random.Random) -> str:
    """A company's name."""
    return f"{rng.choice(SURNAME_HEADS)}{rng.choice(SURNAME_TAILS)} {rng.choice(COMPANY_KINDS)}"


def book(rng: random.Random) -> str:
    """A book's title."""
    return f"The {rng.choice(BOOK_ADJECTIVES)} {rng.choice(BOOK_NOUNS)}"


def river(rng: random.Random) -> str:
    """A river's name."""
    return f"River {rng.choice(RIVER_HEADS)}{rng.choice(RIVER_TAILS)}"


def ship(rng: random.Random) -> str:
    """A ship's name."""
    return f"{rng.choice(SHIP_NAMES_A)} {rng.choice(SHIP_NAMES_B)} {rng.randint(2, 99)}"


def year(rng: random.Random) -> str:
    """A year between 1650 and 1989."""
    return str(rng.randint(1650, 1989))


def number(rng: random.Random) -> str:
    """A count of two significant digits, 20 to 9,900."""
    return str(rng.randint(2, 99) * rng.choice((10, 100)))


def one_of(values: list[str]) -> Callable[[random.Random], str]:
    """A value source that picks from a list."""
    return lambda rng: rng.choice(values)


# kind -> (name source, noun phrases for later mentions,
#          {attribute: (value source, sentences, questions)})
# {s} is the subject of the sentence, {v} the value, {n} the full name.
Attribute = tuple[Callable[[random.Random], str], tuple[str, ...], tuple[str, ...]]
KINDS: dict[str, tuple[Callable[[random.Random], str], tuple[str, ...], dict[str, Attribute]]] = {
    "person": (
        person,
        ("{pronoun}",),
        {
            "birthplace": (
                town,
                (
                    "{s} was born in {v}.",
                    "{s} grew up in {v}.",
                    "{s} came from {v}.",
                    "The birthplace of {n} is {v}.",
                ),
                (
                    "Where was {n} born?",
                    "In which town was {n} born?",
                    "What is the birthplace of {n}?",
                ),
            ),
            "birth year": (
                year,
                (
                    "{s} was born in the year {v}.",
                    "The year of birth of {n} is {v}.",
                    "In {v}, {n} was born.",
                ),
                (
                    "In what year was {n} born?",
                    "When was {n} born?",
                    "What is the birth year of {n}?",
                ),
            ),
            "job": (
                one_of(JOBS),
                (
                    "{s} worked as a {v}.",
                    "{s} earned a living as a {v}.",
                    "By trade, {n} was a {v}.",
                ),
                (
                    "What was the profession of {n}?",
                    "What did {n} work as?",
                    "What was {n} by trade?",
                ),
            ),
            "instrument": (
                one_of(INSTRUMENTS),
                (
                    "{s} played the {v}.",
                    "In the evenings {s_lower} played the {v}.",
                    "{s} was known to play the {v}.",
                ),
                ("Which instrument did {n} play?", "What instrument was played by {n}?"),
            ),
            "spouse": (
                person,
                ("{s} was married to {v}.", "{s} married {v}.", "The spouse of {n} was {v}."),
                ("Who was {n} married to?", "Who did {n} marry?", "Who was the spouse of {n}?"),
            ),
            "employer": (
                company,
                (
                    "{s} was employed by {v}.",
                    "{s} spent many years at {v}.",
                    "The employer of {n} was {v}.",
                ),
                (
                    "Which company employed {n}?",
                    "Who was the employer of {n}?",
                    "Where was {n} employed?",
                ),
            ),
        },
    ),
    "town": (
        town,
        ("The town", "It"),
        {
            "river": (
                river,
                (
                    "{s} lies on the {v}.",
                    "{s} stands beside the {v}.",
                    "The {v} flows through {n}.",
                ),
                ("Which river flows through {n}?", "On which river does {n} lie?"),
            ),
            "founded": (
                year,
                ("{s} was founded in {v}.", "{s} dates from {v}.", "Settlers founded {n} in {v}."),
                ("In what year was {n} founded?", "When was {n} founded?"),
            ),
            "mayor": (
                person,
                (
                    "The mayor of {n} is {v}.",
                    "{s} is governed by {v}.",
                    "{v} serves as mayor of {n}.",
                ),
                ("Who is the mayor of {n}?", "Who governs {n}?"),
            ),
            "product": (
                one_of(PRODUCTS),
                (
                    "{s} is famous for its {v}.",
                    "{s} is known for {v}.",
                    "Visitors come to {n} for its {v}.",
                ),
                ("What is {n} famous for?", "What is {n} known for?"),
            ),
            "population": (
                number,
                (
                    "{s} has {v} inhabitants.",
                    "The population of {n} is {v}.",
                    "{s} is home to {v} people.",
                ),
                ("How many people live in {n}?", "What is the population of {n}?"),
            ),
            "fair": (
                one_of(MONTHS),
                ("{s} holds a fair every {v}.", "A fair takes place in {n} each {v}."),
                ("In which month does {n} hold its fair?", "When is the fair of {n}?"),
            ),
        },
    ),
    "company": (
        company,
        ("The company", "It", "The firm"),
        {
            "founder": (
                person,
                ("{s} was founded by {v}.", "{v} founded {n}.", "The founder of {n} was {v}."),
                ("Who founded {n}?", "Who was the founder of {n}?"),
            ),
            "founded": (
                year,
                ("{s} opened in {v}.", "{s} was established in {v}.", "{n} began trading in {v}."),
                ("In what year was {n} established?", "When did {n} open?"),
            ),
            "seat": (
                town,
                (
                    "{s} is based in {v}.",
                    "{s} has its headquarters in {v}.",
                    "The head office of {n} is in {v}.",
                ),
                ("Where is {n} based?", "In which town is the headquarters of {n}?"),
            ),
            "product": (
                one_of(PRODUCTS),
                ("{s} makes {v}.", "{s} produces {v}.", "{s} sells {v}."),
                ("What does {n} make?", "What does {n} produce?"),
            ),
            "staff": (
                number,
                (
                    "{s} has {v} employees.",
                    "{s} employs {v} workers.",
                    "The staff of {n} numbers {v}.",
                ),
                ("How many employees does {n} have?", "How many workers does {n} employ?"),
            ),
        },
    ),
    "book": (
        book,
        ("The book", "It", "The novel"),
        {
            "author": (
                person,
                ("{s} was written by {v}.", "{v} wrote {n}.", "The author of {n} is {v}."),
                ("Who wrote {n}?", "Who is the author of {n}?"),
            ),
            "published": (
                year,
                ("{s} was published in {v}.", "{s} first appeared in {v}.", "{n} came out in {v}."),
                ("In what year was {n} published?", "When was {n} published?"),
            ),
            "subject": (
                one_of(GENRES),
                ("{s} is about {v}.", "{s} tells a story of {v}.", "The subject of {n} is {v}."),
                ("What is {n} about?", "What is the subject of {n}?"),
            ),
            "setting": (
                town,
                ("{s} is set in {v}.", "The story of {n} takes place in {v}.", "{s} plays in {v}."),
                ("Where is {n} set?", "In which town is {n} set?"),
            ),
            "cover": (
                one_of(COLOURS),
                ("{s} has a {v} cover.", "The cover of {n} is {v}.", "{s} is bound in {v}."),
                ("What colour is the cover of {n}?", "Which colour does the cover of {n} have?"),
            ),
        },
    ),
    "river": (
        river,
        ("The river", "It"),
        {
            "length": (
                number,
                ("{s} is {v} kilometres long.", "The length of the {n} is {v} kilometres."),
                ("How many kilometres long is the {n}?", "How long is the {n} in kilometres?"),
            ),
            "town": (
                town,
                ("{s} flows past {v}.", "{s} passes {v}.", "The largest town on the {n} is {v}."),
                ("Which town does the {n} flow past?", "Which town lies on the {n}?"),
            ),
            "fish": (
                one_of(FISH),
                (
                    "{s} is full of {v}.",
                    "Anglers catch {v} in the {n}.",
                    "{s} is known for its {v}.",
                ),
                ("Which fish live in the {n}?", "What fish is the {n} known for?"),
            ),
            "explorer": (
                person,
                ("{s} was mapped by {v}.", "{v} was the first to map the {n}."),
                ("Who mapped the {n}?", "Who was the first to map the {n}?"),
            ),
            "flood": (
                year,
                ("{s} flooded in {v}.", "A great flood of the {n} came in {v}."),
                ("In what year did the {n} flood?", "When did the {n} flood?"),
            ),
        },
    ),
    "ship": (
        ship,
        ("The ship", "It", "The vessel"),
        {
            "captain": (
                person,
                (
                    "{s} was commanded by {v}.",
                    "The captain of the {n} was {v}.",
                    "{v} was captain of the {n}.",
                ),
                ("Who was the captain of the {n}?", "Who commanded the {n}?"),
            ),
            "built": (
                year,
                (
                    "{s} was built in {v}.",
                    "{s} was launched in {v}.",
                    "Work on the {n} ended in {v}.",
                ),
                ("In what year was the {n} built?", "When was the {n} launched?"),
            ),
            "port": (
                town,
                (
                    "{s} sailed from {v}.",
                    "The home port of the {n} was {v}.",
                    "{s} belonged to the port of {v}.",
                ),
                ("What was the home port of the {n}?", "From which port did the {n} sail?"),
            ),
            "cargo": (
                one_of(CARGO),
                ("{s} carried {v}.", "{s} was loaded with {v}.", "The cargo of the {n} was {v}."),
                ("What did the {n} carry?", "What was the cargo of the {n}?"),
            ),
            "hull": (
                one_of(COLOURS),
                ("{s} had a {v} hull.", "The hull of the {n} was painted {v}."),
                ("What colour was the hull of the {n}?", "Which colour was the {n} painted?"),
            ),
        },
    ),
}


def is_held_out(name: str) -> bool:
    """Whether an entity belongs to the held-out part, by a hash of its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_SHARE == 0


def sentence_for(template: str, name: str, value: str, mention: str) -> str:
    """Fill one sentence template and capitalise its first letter."""
    lower = mention if mention == name else mention[0].lower() + mention[1:]
    text = template.format(s=mention, s_lower=lower, n=name, v=value)
    return text[0].upper() + text[1:]


def entry(rng: random.Random, held_out: bool = False, kind: str | None = None) -> Entry:
    """Invent one entity with three to six facts and write its passage."""
    kind = kind or rng.choice(list(KINDS))
    name_source, noun_phrases, attributes = KINDS[kind]
    name = name_source(rng)
    while is_held_out(name) != held_out:
        name = name_source(rng)
    chosen = rng.sample(list(attributes), k=min(len(attributes), rng.randint(4, 6)))
    facts = []
    for position, attribute in enumerate(chosen):
        value_source, sentences, questions = attributes[attribute]
        value = value_source(rng)
        article = f"The {name}" if kind in ("river", "ship") else name
        later = rng.choice(noun_phrases).format(
            pronoun="She" if name.split()[0] in FEMALE else "He"
        )
        mention = article if position == 0 or rng.random() < 0.25 else later
        sentence = sentence_for(rng.choice(sentences), name, value, mention)
        facts.append(Fact(attribute, value, sentence, tuple(q.format(n=name) for q in questions)))
    return Entry(kind, name, " ".join(fact.sentence for fact in facts), tuple(facts))


def entries(seed: int, held_out: bool = False) -> Iterator[Entry]:
    """An endless, seeded stream of entries."""
    rng = random.Random(seed)
    while True:
        yield entry(rng, held_out)


def retell(entry: Entry, rng: random.Random) -> str:
    """The same facts in another order and other words."""
    _, noun_phrases, attributes = KINDS[entry.kind]
    facts = rng.sample(entry.facts, k=len(entry.facts))
    article = f"The {entry.title}" if entry.kind in ("river", "ship") else entry.title
    pronoun = "She" if entry.title.split()[0] in FEMALE else "He"
    told = []
    for position, fact in enumerate(facts):
        later = rng.choice(noun_phrases).format(pronoun=pronoun)
        mention = article if position == 0 or rng.random() < 0.25 else later
        template = rng.choice(attributes[fact.attribute][1])
        told.append(sentence_for(template, entry.title, fact.value, mention))
    return " ".join(told)
