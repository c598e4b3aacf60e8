"""The scripts behind docs/reliability.md."""

import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "benchmarks"))
import mutants  # noqa: E402
import reliability  # noqa: E402


def test_the_page_is_what_the_stored_results_give() -> None:
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(), "run: python benchmarks/reliability.py"


KNOWN = {
    "attention": [
        "x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) → x.repeat(q.shape[1] // x.shape[1], dim=1)",
        "dim % heads or heads % kv_heads → dim % heads",
        "if dim % heads or heads % kv_heads: → (never)",
    ],
    "generation": ["ended.all() → ended.any()"],
    "vision": ["[rows, columns] → [rows, rows]"],
    "omni": ["end + window → end"],
}


@pytest.mark.parametrize("module", KNOWN)
def test_mutants_that_once_survived_are_among_those_that_are_made(module: str) -> None:
    made = {f"{mutant.before} → {mutant.after}": render for mutant, render in mutants.mutants_of(module)}
    for change in KNOWN[module]:
        compile(made[change](), module, "exec")


def test_every_mutant_differs_and_compiles() -> None:
    made = mutants.mutants_of("rope")
    sources = {render() for _, render in made}
    assert len(sources) == len(made) > 20
    for source in sources:
        compile(source, "rope", "exec")
