"""The scripts behind docs/reliability.md."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "benchmarks"))
import mutants  # noqa: E402
import reliability  # noqa: E402


def test_the_page_is_what_the_stored_results_give() -> None:
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(), "run: python benchmarks/reliability.py"


def test_every_promise_has_tests_and_they_exist() -> None:
    found = reliability.promises()
    assert len({text for text, _ in found}) == len(found) > 10
    for text, tests in found:
        assert tests, text
        for test in tests:
            file, name = test.split("::")
            source = (TOP / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), test


def fuzzed(out: Path, *arguments: str, before: str = "") -> tuple[int, dict[str, Any]]:
    """The exit status and the result of benchmarks/fuzz.py, in a process without threads: it forks."""
    code = f"import sys, fuzz\n{before}\nsys.exit(fuzz.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--out", str(out)], cwd=TOP / "benchmarks")
    return done.returncode, json.loads(out.read_text(encoding="utf-8"))["targets"]


def test_no_fuzz_target_lets_another_error_through(tmp_path: Path) -> None:
    status, targets = fuzzed(tmp_path / "fuzz.json", "--cases", "1000", "--seed", "7")
    assert status == 0 and len(targets) >= 11
    for target, found in targets.items():
        assert found["failed"] == [] and found["cases"] == found["read"] + found["refused"] >= 90, target
        assert found["refused"], target


def test_a_door_that_lets_an_error_through_or_dies_is_noticed(tmp_path: Path) -> None:
    target = """
import os
def case(folder, chance):
    number = chance.random()
    return lambda: os._exit(7) if number < 0.05 else 1 / 0 if number < 0.5 else None
fuzz.TARGETS["json"] = case, (ValueError,)
"""
    status, targets = fuzzed(tmp_path / "fuzz.json", "--targets", "json", "--cases", "100", before=target)
    found = targets["json"]
    assert status == 1 and found["cases"] == 100 == found["read"] + len(found["failed"])
    assert sum("ZeroDivisionError" in each for each in found["failed"]) > 20
    assert sum("the process ended with status 7" in each for each in found["failed"]) > 0


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


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "mutants.json", []

    def outcomes(sources: Iterable[tuple[int, str, str]], jobs: int) -> Iterator[tuple[int, str]]:
        for at, module, source in sources:
            unchanged = source == mutants.path_of(module).read_text(encoding="utf-8")
            seen.extend([] if unchanged else [module])
            yield at, "survived" if unchanged or module == survives else "killed"

    monkeypatch.setattr(mutants, "outcomes", outcomes)
    monkeypatch.setattr(mutants, "load_libraries", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int, list[str], Counter[str]]:
        seen.clear()
        status = mutants.main([*arguments, "--out", str(out)])
        results = json.loads(out.read_text(encoding="utf-8"))["results"]
        return status, [*seen], Counter(each["outcome"] for each in results)

    names, survives = [*mutants.TESTS], "rope"
    assert run("--count", "13") == (1, names, Counter(killed=12, survived=1))
    assert run("--count", "26") == (1, names, Counter(killed=24, survived=2))
    assert run("--again", "--modules", "vision") == (1, [], Counter(killed=24, survived=2))
    survives = ""
    assert run("--again") == (0, ["rope", "rope"], Counter(killed=26))
    first = Counter(each["first"] for each in json.loads(out.read_text(encoding="utf-8"))["results"])
    assert first == Counter(killed=24, survived=2)


def test_every_mutant_differs_and_compiles() -> None:
    made = mutants.mutants_of("rope")
    sources = {render() for _, render in made}
    assert len(sources) == len(made) > 20
    for source in sources:
        compile(source, "rope", "exec")
