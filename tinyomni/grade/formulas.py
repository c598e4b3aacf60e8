"""Formulas as plain text, where nothing typesets TeX: a terminal, an editor, a page of feedback.

    plain(r"divide by $\\sqrt{D}$")      divide by √D
    plain(r"$t\\,\\theta^{-2p/D}$")       t θ^(−2p/D)

It knows what the headings, hints and exercise texts of the course use; of any other command the name is left.
"""

import re

FORMULA = re.compile(r"(?P<edge>\$\$?)(?P<tex>(?:(?!\n\n)[^$])+)(?P=edge)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
SIGNS = {
    "alpha": "α", "beta": "β", "theta": "θ", "sum": "Σ", "cdot": "·", "times": "×", "dots": "…", "mid": "|",
    "propto": "∝", "approx": "≈", "top": "ᵀ",
}  # fmt: skip
RULES = [
    (re.compile(r"\\text\s*\{([^{}]*)\}"), lambda found: found[1]),
    (re.compile(r"\\[,;: ]"), lambda found: " "),
    (re.compile(r"\\hat\s*\{?(\w)\}?"), lambda found: f"{found[1]}\N{COMBINING CIRCUMFLEX ACCENT}"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), lambda found: f"√{bracketed(found[1])}"),
    (re.compile(r"\^\\top\b"), lambda found: SIGNS["top"]),
    (re.compile(r"\^\{([^{}]*)\}"), lambda found: f"^{bracketed(found[1])}"),
    (re.compile(r"\{([^{}]*)\}"), lambda found: found[1]),
    (re.compile(r"\\([A-Za-z]+)"), lambda found: SIGNS.get(found[1], found[1])),
    (re.compile(r"\s+"), lambda found: " "),
    (re.compile(r"-"), lambda found: "−"),
]


def plain(text: str) -> str:
    """The text with each `$…$` in Unicode; code between backticks stays as it is."""
    parts = CODE.split(text)
    parts[::2] = [FORMULA.sub(lambda found: formula(found["tex"].strip()), part) for part in parts[::2]]
    return "".join(parts)


def formula(tex: str) -> str:
    """One formula, without its dollar signs."""
    for pattern, replace in RULES:
        tex = pattern.sub(replace, tex)
    return tex


def bracketed(tex: str) -> str:
    """What stands under a root or in an exponent: in brackets, if it is more than one sign."""
    return tex if re.fullmatch(r"\w|\\[A-Za-z]+", tex) else f"({tex})"
