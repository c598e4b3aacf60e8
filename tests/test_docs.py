"""The documentation is what the code prints: `python tests/test_docs.py` writes the outputs again."""

import contextlib
import io
import linecache
import re
import sys
from pathlib import Path

import pytest

from tinyomni import dry_run
from tinyomni.dry_run import pipelines
from tinyomni.evaluation.registry import METRICS
from tinyomni.io.weights import SHIPPED
from tinyomni.tracing import SpecMismatch

sys.path.insert(0, str(Path(__file__).parents[1]))
import course

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
SHOWN = (
    "questions.typed", "questions.typed_held_out_pairs", "questions.spoken", "questions.spoken_held_out_voice",
    "vision.image_to_text", "asr.cer_grammar", "asr.cer_held_out_voice", "tts.cer", "asr_judge.wer_tts",
    "dialogue.accuracy_judge", "looks.caption", "looks.question", "wordings.others", "wordings.careless",
    "recordings.10_db_snr", "recordings.festival_kal_diphone",
)  # fmt: skip
"""The metrics that the README shows."""
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


def metrics_part() -> str:
    """The README's table: some rows of the model card, word for word."""
    rows = (SHIPPED.parent / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
    cells = {row.split("|")[1].strip(): row for row in rows if row.startswith("| ")}
    head = rows.index(next(row for row in rows if row.startswith("| metric |")))
    return "\n".join([*rows[head : head + 2], *(cells[METRICS[name].label] for name in SHOWN)])


def dry_run_part() -> str:
    """What the README shows of the dry run: one pipeline, without the noise that fresh weights generate."""
    report = str(dry_run.run("multimodal", dry_run.build(0), dry_run.default_inputs()))
    lines = "\n".join(line for line in report.splitlines() if "ids → text" not in line)
    return f"```\n{lines}\n```"


def with_parts(page: str) -> str:
    """The README with its generated parts as they should be."""
    for name, part in (("metrics", metrics_part()), ("dry run", dry_run_part())):
        block = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert block.search(page), f"README.md has no part {name!r}"
        page = block.sub(lambda match, part=part: f"{match[1]}\n{part}\n\n{match[2]}", page)
    return page


def test_the_readme_shows_what_is_measured_and_printed() -> None:
    page = README.read_text(encoding="utf-8")
    assert with_parts(page) == page, "run `python tests/test_docs.py`"


def test_the_readme_calls_every_command_in_one_way() -> None:
    """`tinyomni …` is not on the path after course.py; only the paragraph on activating .venv may name it."""
    page = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", page, re.MULTILINE | re.DOTALL) + re.findall(r"`[^`\n]+`", page)
    direct = [block for block in blocks if re.search(r"^[`$ ]*tinyomni [a-z]", block, re.MULTILINE)]
    assert direct == ["`tinyomni ask …`"]
    for command in re.findall(r"python3 course\.py (?:--cpu )?([a-z][\w-]*)", page):
        assert command in ("test", "lab", "notebooks", "exercises", "site", *course.PASSED_ON), command


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
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), (
            f"{name}: run `python3 course.py dry-run --docs docs`"
        )


def test_no_figure_is_drawn_from_a_run_that_is_not_as_specified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "previous", lambda codes: codes[:, 1:])
    with pytest.raises((SpecMismatch, ValueError)):
        dry_run.write_docs(tmp_path)


@pytest.mark.parametrize("name", ["audio", "speech"])
def test_the_specifications_rules_hold_for_all_lengths(name: str) -> None:
    spec = dry_run.load_spec(name)
    assert [each.name for each in spec.check_rules(dry_run.lengths(dry_run.build()))] == [
        each["call"] for each in spec.rules
    ]


def test_links_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), README, README.parent / "CONTRIBUTING.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


if __name__ == "__main__":
    tracer = DOCS / "tracer.md"
    tracer.write_text(with_outputs(tracer.read_text(encoding="utf-8")), encoding="utf-8")
    dry_run.write_docs(DOCS)
    README.write_text(with_parts(README.read_text(encoding="utf-8")), encoding="utf-8")
