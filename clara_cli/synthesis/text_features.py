"""What the gates compare: words, content words, numbers, names, script and language of a text.

Pure functions without a model. Knows no grammar: names are recognised by their capitals, languages
by their commonest words, and where there is no evidence there is no verdict.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Set
from functools import lru_cache

from clara_cli.search.bm25 import words

STOP = {
    "en": "a about after all also an and any are as at be been before being between both but by"
    " can could did do does during each for from had has have he her his how i if in into is"
    " it its many may more most much no not of on one only or other our over she so some"
    " such than that the their them then there these they this those to under until up was"
    " we were what when where which while who whom whose why will with would you your s t",
    "de": "der die das und ist ein eine einen einem einer in im zu den dem des mit von auf für"
    " nicht als auch an es sich wird wurde war sind bei nach wie wer was wo wann welche"
    " welcher hat am um aus durch oder",
    "fr": "le la les et est un une des du de dans en à au aux pour pas que qui sur avec par il"
    " elle ce cette son sa ses sont était a été où quand quel quelle ou d l s qu",
    "es": "el la los las y es un una de del en a al por para con no que se su sus lo como más fue"
    " son era ha qué quién cuándo dónde cuál o",
    "it": "il lo la i gli le e è un una di del della dei delle in a al da per con non che si su"
    " sono era ha come più chi quando dove quale o nel nella",
    "pt": "o a os as e é um uma de do da dos das em no na por para com não que se seu sua como"
    " mais foi são era quem quando onde qual ou ao à",
    "nl": "de het een en is in van op te dat die met voor niet zijn er aan ook als door bij werd"
    " was naar om uit wie wat waar wanneer welke of",
    "pl": "i w na z do że się nie to jest o jak po przez od dla był była były przy oraz kto co"
    " gdzie kiedy który która",
}
STOPWORDS = {language: frozenset(text.split()) for language, text in STOP.items()}
NUMBER_WORDS = {
    word: str(value)
    for value, word in [
        *enumerate(
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
            " sixteen seventeen eighteen nineteen twenty".split(),
            start=2,
        ),
        *zip(
            range(30, 100, 10),
            "thirty forty fifty sixty seventy eighty ninety".split(),
            strict=True,
        ),
    ]
}
_UNITS = {"one": 1} | {w: int(v) for w, v in NUMBER_WORDS.items() if int(v) < 10}
_TENS = {word for word, value in NUMBER_WORDS.items() if int(value) % 10 == 0 and value != "10"}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:[.,]\d{3})+")
_WORD = re.compile(r"(?<!\w)[^\W\d_][^\W_]*(?:\.[^\W\d_](?![^\W_]))*")
_SENTENCE_START = re.compile(r"(?:\A|[.!?:;\"“„«»()\[\]\n–—]|\s-|\d[.)])\s*[\"'“‘«(]*\Z")
_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_LEAST_HITS = 3  # commonest words needed to name a language
_LEAD = 1.5  # and how clearly it has to lead


def content_words(text: str) -> list[str]:
    """The words of a text without the commonest ones of its language, in order."""
    common = STOPWORDS[language(text) or "en"]
    return [word for word in words(text) if word not in common]


@lru_cache(maxsize=4096)
def vocabulary(text: str) -> frozenset[str]:
    """The different words of a text."""
    return frozenset(words(text))


@lru_cache(maxsize=4096)
def numbers(text: str) -> frozenset[str]:
    """The numbers of a text in one spelling: `1,200` is `1200`, `twelve` is `12`."""
    spelled = words(text)
    values = set(digits(text)) | {NUMBER_WORDS[w] for w in spelled if w in NUMBER_WORDS}
    for tens, unit in zip(spelled, spelled[1:], strict=False):
        if tens in _TENS and unit in _UNITS:
            values.add(str(int(NUMBER_WORDS[tens]) + _UNITS[unit]))
    return frozenset(values)


def digits(text: str) -> frozenset[str]:
    """The numbers a text writes in digits."""
    text = unicodedata.normalize("NFKC", text)
    return frozenset(map(_plain_number, _NUMBER.findall(text)))


def _plain_number(text: str) -> str:
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[.,]", "", text)
    whole, dot, rest = text.replace(",", ".").partition(".")
    whole = whole.lstrip("0") or "0"
    return f"{whole}{dot}{rest}" if not dot or rest.strip("0.") else whole


@lru_cache(maxsize=4096)
def names(text: str) -> frozenset[str]:
    """Words that capitals mark as names, case-folded: capitalised ones that do not open a
    sentence, and acronyms anywhere. None in German, which capitalises every noun, and none in a
    text all in capitals or in title case."""
    found: list[str] = []
    inner = capital = 0
    for match in _WORD.finditer(text):
        word = match[0]
        opens = bool(_SENTENCE_START.search(text[max(0, match.start() - 4) : match.start()]))
        acronym = len(word) > 1 and word.isupper()
        inner += not opens
        capital += word[0].isupper() and not opens
        if acronym or (word[0].isupper() and not opens and len(word) > 1):
            found.append(word)
    if language(text) == "de" or (inner >= 8 and capital > 0.8 * inner):
        return frozenset()
    common = STOPWORDS["en"]
    kept = (w for name in found for w in words(name) if w not in common and len(w) > 1)
    return frozenset(kept)


def holds_name(name: str, known: Set[str]) -> bool:
    """Whether a name is among words, give or take an ending of two letters (`Rome's`, `Romes`)."""
    if name in known:
        return True
    if len(name) < 4:
        return False
    return any(
        abs(len(word) - len(name)) <= 2 and (word.startswith(name) or name.startswith(word))
        for word in known
        if len(word) >= 4
    )


def overlap(found: list[str], known: Set[str]) -> float:
    """The share of words that are known, inflected forms counted; 1.0 for no words."""
    if not found:
        return 1.0
    return sum(_known(word, known) for word in found) / len(found)


def _known(word: str, known: Set[str]) -> bool:
    if word in known:
        return True
    if len(word) < 5 or not word.isalpha():
        return False
    stem = word[: max(4, len(word) - 3)]
    return any(w.startswith(stem) and len(w) <= len(word) + 3 for w in known)


def sentences(text: str) -> list[str]:
    """Rough sentences, for coverage only."""
    return [part.strip() for part in _SENTENCES.split(text) if words(part)]


@lru_cache(maxsize=4096)
def language(text: str) -> str | None:
    """A European language, recognised by its commonest words, None without clear evidence."""
    text_words = [word for word in words(text) if len(word) > 1]  # single letters are in too many
    counted = Counter(
        {name: sum(w in common for w in text_words) for name, common in STOPWORDS.items()}
    )
    (first, most), (_, second) = counted.most_common(2)
    if most < _LEAST_HITS or most < _LEAD * max(second, 1):
        return None
    return first


@lru_cache(maxsize=4096)
def script(text: str) -> str | None:
    """The script most letters are of (LATIN, CYRILLIC, CJK, KANA, ...), None without a majority
    of three fifths."""
    counted = Counter(
        _SCRIPTS.get(name, name)
        for name in (unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
        if name
    )
    total = sum(counted.values())
    if not total:
        return None
    if counted["KANA"] * 10 >= total:  # Japanese writes Han among its kana
        return "KANA"
    first, most = counted.most_common(1)[0]
    return first if most * 5 >= total * 3 else None


_SCRIPTS = {"HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}


def other_language(text: str, reference: str) -> bool:
    """Whether a text is in another script or language than its reference, by clear evidence."""
    scripts = script(text), script(reference)
    if all(scripts) and scripts[0] != scripts[1]:
        return True
    languages = language(text), language(reference)
    return all(languages) and languages[0] != languages[1]


_PIECE = re.compile(r"[A-Za-z]{1,6}|\d{1,3}|[^\sA-Za-z\d]")


def token_estimate(text: str) -> list[tuple[int, int]]:
    """Pieces of a text about as many as a tokenizer makes, rather more: six Latin letters, three
    digits or one other character each."""
    return [match.span() for match in _PIECE.finditer(text)]
