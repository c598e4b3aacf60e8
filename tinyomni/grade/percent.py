"""Notebooks as plain Python files with cells, in jupytext's percent format, which editors such as VS Code run.

# %% [markdown]
# ## 1. Attention scores

# %%
def attention_scores(q, k):
    raise NotImplementedError
"""

import re
from typing import Any

MARK = re.compile(r"^# %%(?!%)(?P<title>.*)$", re.MULTILINE)
HEADER = re.compile(r"\A(?:#!.*\n)?# ---\n(?P<lines>(?:#.*\n)*?)# ---\n")  # jupytext's, and ours
MAGIC = re.compile(r"^(?P<indent>\s*)(?P<hidden>(?:# )?)(?P<magic>[%!]{1,2}\w)")


def parse(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell; a file without marks is one cell of code."""
    text = HEADER.sub("", text.replace("\r\n", "\n"))
    marks = list(MARK.finditer(text))
    first = text[: marks[0].start()] if marks else text
    cells = [("code", first.strip("\n"))] if first.strip() else []
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    for mark, end in zip(marks, ends, strict=True):
        source = text[mark.end() : end].strip("\n")
        named = re.search(r"\[(markdown|md|raw)\]", mark["title"])
        kind = {"md": "markdown"}.get(named[1], named[1]) if named else "code"
        if kind == "code":
            cells.append((kind, "\n".join(map(show_magic, source.split("\n")))))
        else:
            cells.append((kind, re.sub(r"^# ?", "", source, flags=re.MULTILINE)))
    return cells


def render(notebook: Any, **header: str) -> str:
    """A notebook as text; `header` is for whoever made it."""
    lines = ["# ---", "# jupyter:", "#   kernelspec:", "#     display_name: Python 3", "#     name: python3"]
    lines += ["#   tinyomni:"] if header else []
    lines += [f"#     {name}: {value}" for name, value in header.items()]
    parts = ["\n".join([*lines, "# ---"])]
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip("\n").split("\n")
        if cell["cell_type"] == "code":
            parts.append("\n".join(["# %%", *map(hide_magic, source)]))
        else:
            parts.append("\n".join([f"# %% [{cell['cell_type']}]", *(f"# {line}".rstrip() for line in source)]))
    return "\n\n".join(parts) + "\n"


def read_header(text: str) -> dict[str, str]:
    """What `render` was given."""
    found = HEADER.match(text.replace("\r\n", "\n"))
    lines = found["lines"].split("#   tinyomni:\n")[1:] if found else []
    return dict(re.findall(r"^#     (\w+): (.*)$", lines[0], re.MULTILINE)) if lines else {}


def hide_magic(line: str) -> str:
    """A line of IPython's own language as a comment: the file stays Python."""
    return MAGIC.sub(r"\g<indent># \g<magic>", line) if MAGIC.match(line) else line


def show_magic(line: str) -> str:
    """The inverse."""
    return MAGIC.sub(r"\g<indent>\g<magic>", line) if MAGIC.match(line) else line
