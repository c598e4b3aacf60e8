"""The documentation is what the code prints: `python tests/test_docs.py` writes the outputs anew."""

import contextlib
import io
import linecache
import re
from pathlib import Path

import pytest

from tinyomni import dry_run
from tinyomni.tracing import Spec, SpecMismatch

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def with_outputs(page: str) -> str:
    """The page with every block run, one after the other in one namespace, and what it prints below it."""
    space: dict[str, object] = {"__name__": "__main__"}
    number = 0

    def block(match: re.Match[str]) -> str:
        nonlocal number
        number += 1
        source, out = match[1], io.StringIO()
        name = f"block_{number}.py"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with contextlib.redirect_stdout(out):
            exec(compile(source, name, "exec"), space)
        shown = f"\n```text\n{out.getvalue().rstrip()}\n```" if match[2] is not None else ""
        return f"```python\n{source}```\n{shown}"

    return BLOCK.sub(block, page)


def test_the_tracers_page_prints_what_it_shows() -> None:
    page = (DOCS / "tracer.md").read_text(encoding="utf-8")
    assert with_outputs(page) == page


def test_tables_and_figures_are_those_of_the_specifications(tmp_path: Path) -> None:
    dry_run.write_docs(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [
        "audio.svg",
        "image.svg",
        "multimodal.svg",
        "shapes.md",
        "speech.svg",
        "text.svg",
        "training.svg",
    ]
    for name in written:
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), f"{name}: run `tinyomni dry-run --docs docs`"


def test_no_figure_is_drawn_from_a_run_that_is_not_as_specified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "previous", lambda codes: codes[:, 1:])
    with pytest.raises((SpecMismatch, ValueError)):
        dry_run.write_docs(tmp_path)


@pytest.mark.parametrize("name", ["audio", "speech"])
def test_the_specifications_rules_hold_for_all_lengths(name: str) -> None:
    spec = Spec.load(dry_run.HERE / "specs" / f"{name}.toml")
    assert [each.name for each in spec.prove(dry_run.lengths(dry_run.build()))] == [each["call"] for each in spec.rules]


def test_links_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


if __name__ == "__main__":
    tracer = DOCS / "tracer.md"
    tracer.write_text(with_outputs(tracer.read_text(encoding="utf-8")), encoding="utf-8")
    dry_run.write_docs(DOCS)
