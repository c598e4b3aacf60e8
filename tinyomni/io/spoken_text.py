"""Text as it is read out: numbers, symbols, abbreviations and capitals become words, before the Talker sees them.

    "There are 3 circles."  →  "There are three circles."

The Talker learned words. A sign that it never had would become some sound, and perhaps another fact: `3` was spoken as
`two`. What cannot be turned into words is an error.
"""

import re
import unicodedata

from tinyomni.errors import InputError

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}  # fmt: skip
MOST = 10**12  # longer numbers are read digit by digit
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missis", "ms": "miss", "dr": "doctor", "prof": "professor", "st": "saint",
    "etc": "and so on", "vs": "versus", "approx": "about", "e.g": "for example", "i.e": "that is", "no": "number",
    "p.m": "p m", "a.m": "a m",
}  # fmt: skip
ONLY_BEFORE_A_NUMBER = frozenset({"no"})
SYMBOLS = {"%": " percent", "&": " and ", "+": " plus ", "=": " equals ", "@": " at ", "\N{DEGREE SIGN}": " degrees",
           "#": " number ", "\N{MULTIPLICATION SIGN}": " times ", "\u20ac": " euros", "$": " dollars",
           "\u00a3": " pounds", "/": " or ", "\u2013": ", ", "\u2014": ", ", "_": " "}  # fmt: skip
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
SPEAKABLE = re.compile(r"[A-Za-z .,;:!?'\"()-]")
NUMBER = re.compile(r"(?<![\d.])(?P<minus>[-\u2212](?=\d))?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<part>\d+))?"
                    r"(?P<ordinal>st|nd|rd|th)?(?![\d])")  # fmt: skip
MONEY = re.compile("(?P<sign>[$\u20ac\u00a3]) ?(?P<amount>[\\d,.]*\\d)")
TIME = re.compile(r"\b(?P<hour>\d{1,2}):(?P<minute>\d\d)\b")


def cardinal(number: int) -> str:
    """`42` → `forty-two`, as two words without the hyphen."""
    if number < len(ONES):
        return ONES[number]
    if number < 100:
        return f"{TENS[number // 10]} {ONES[number % 10]}" if number % 10 else TENS[number // 10]
    scale, name = next(each for each in SCALES if number >= each[0])
    rest = number % scale
    joint = " and " if 0 < rest < 100 else " "
    return f"{cardinal(number // scale)} {name}" + (f"{joint}{cardinal(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """`3` → `third`."""
    *front, last = cardinal(number).split()
    last = ORDINALS.get(last) or (
        last.removesuffix("y") + "ieth" if last.endswith("y") else last.removesuffix("t") + "th"
    )
    return " ".join((*front, last))


def read_number(found: re.Match[str]) -> str:
    """A number as it is written in a text → words."""
    digits = found["whole"].replace(",", "")
    long = int(digits) >= MOST or (len(digits) > 1 and digits[0] == "0")
    words = " ".join(ONES[int(digit)] for digit in digits) if long else cardinal(int(digits))
    if found["ordinal"] and not found["part"] and not long:
        words = ordinal(int(digits))
    if found["part"]:
        words += " point " + " ".join(ONES[int(digit)] for digit in found["part"])
    return ("minus " if found["minus"] else "") + words


def read_time(found: re.Match[str]) -> str:
    """`10:30` → `ten thirty`; a score such as `3:75` is read as two numbers too."""
    minute = int(found["minute"])
    zero = "oh " if 0 < minute < 10 else ""
    return f"{cardinal(int(found['hour']))} {'o clock' if minute == 0 else zero + cardinal(minute)}"


def read_word(found: re.Match[str]) -> str:
    """A word in capitals: an abbreviation without a vowel letter by letter, any other in small letters."""
    word = found[0]
    return word.lower() if re.search("[AEIOUY]", word) else " ".join(word)


def expand(found: re.Match[str]) -> str:
    """An abbreviation with its full stop → the words."""
    short = found["short"].lower()
    if short in ONLY_BEFORE_A_NUMBER and not re.match(r"\s*\d", found.string[found.end() :]):
        return found[0]
    words = ABBREVIATIONS[short]
    ends = found.end() == len(found.string.rstrip())
    return (words.capitalize() if found["short"][0].isupper() else words) + ("." if ends else "")


def spoken_text(text: str) -> str:
    """The text in words. Raises InputError for characters that cannot be said; ordinary sentences are unchanged."""
    said = re.sub(r"[^\S ]", " ", unicodedata.normalize("NFKC", text)).translate(QUOTES)  # line ends of all kinds
    said = re.sub(r"\.{2,}", ".", said)
    shorts = "|".join(map(re.escape, sorted(ABBREVIATIONS, key=len, reverse=True)))
    said = re.sub(rf"(?<![\w.])(?P<short>{shorts})\.", expand, said, flags=re.IGNORECASE)
    said = MONEY.sub(lambda found: f"{found['amount']}{SYMBOLS[found['sign']]}", said)
    said = re.sub(r"(?<=[A-Za-z])(?=\d)", " ", TIME.sub(read_time, said))
    said = NUMBER.sub(read_number, said)
    said = re.sub(r"[.,]?\d", lambda found: f" {ONES[int(found[0][-1])]}", said)  # of a version such as 1.2.3
    for symbol, words in SYMBOLS.items():
        said = said.replace(symbol, words)
    said = re.sub(r"\b[A-Z]{2,}\b", read_word, said)
    # letters with accents are said as those without
    said = "".join(each for each in unicodedata.normalize("NFKD", said) if not unicodedata.combining(each))
    if said != text:
        said = re.sub(r" +([.,;:!?])", r"\1", " ".join(said.split()))
        said = re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), said)
    if unspeakable := sorted({each for each in said if not SPEAKABLE.fullmatch(each) and not each.isspace()}):
        raise InputError(
            f"Omni.speak: expected a text in English letters, got {', '.join(map(repr, unspeakable[:5]))}, "
            "which cannot be said. Write it in words."
        )
    return said
