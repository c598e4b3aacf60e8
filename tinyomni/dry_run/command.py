"""`tinyomni dry-run`: run the pipelines, print a report of each and two summaries."""

import json
from collections.abc import Callable

from tinyomni.dry_run.inputs import check_inputs
from tinyomni.dry_run.pipelines import PIPELINES, build, default_inputs, run
from tinyomni.errors import InputError
from tinyomni.files import whole
from tinyomni.omni import Omni
from tinyomni.tracing import SpecReport


def example_prompts(omni: Omni) -> str:
    """The example prompts of the reference specification: its token counts and the real ones, BOS included."""
    rows = ["Example prompts: tokens by the reference specification, and with this tokenizer"]
    for name, each in PIPELINES.items():
        if each.reference_text:
            count = len(omni.tokenizer.encode(each.reference_text)) + (name != "speech")  # speech has no BOS
            rows.append(f"    {each.reference_text:40} reference {each.reference_tokens:>2}   here {count:>2}")
    return "\n".join(rows)


def quick_reference(reports: dict[str, SpecReport]) -> str:
    """The summary table of the reference specification, filled in from this run."""
    rows = [("pipeline", "input", "tokens", "output")]
    for name, report in reports.items():
        axes = report.axes
        if report.ledger:
            counts = " + ".join(f"{count} {source}" for source, count in report.ledger)
            total = sum(count for _, count in report.ledger)
            rows.append((name, counts, f"{total} → {total} → {total} → 1 new", "text"))
        elif name == "speech":
            frames, positions = axes["max_frames"], axes["positions"]
            flow = f"{axes['text_tokens']} → {frames} codes → {positions} mel → {positions * axes['hop']:,} samples"
            rows.append((name, f"{axes['text_tokens']} text", flow, "audio"))
        else:
            size = f"{axes['batch']} × {axes['frames']}"
            rows.append((name, f"{size} frames", f"{size} → {size} codes → 1 loss", "updated weights"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(["Quick reference", *lines])


def count_lines(report: SpecReport) -> int:
    """How many lines were compared: the steps, and the quantities whose value is known."""
    return len(report.steps) + sum(expected is not None for _, _, expected in report.quantities)


def main(
    text: str | None = None,
    image: str | None = None,
    audio: str | None = None,
    names: list[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    json_file: str | None = None,
    out: Callable[[str], None] = print,
) -> bool:
    """Run the pipelines and print each report; True if every line of every one holds."""
    names = list(dict.fromkeys(names or PIPELINES))
    unknown = [name for name in names if name not in PIPELINES]
    if unknown:
        raise InputError(f"dry run: unknown pipeline {', '.join(unknown)}; known: {', '.join(PIPELINES)}")
    inputs = default_inputs(text, image, audio)
    omni = build(seed, device)
    check_inputs(omni, inputs)
    reports: dict[str, SpecReport] = {}
    for name in names:
        reports[name] = run(name, omni, inputs)
        out(f"{reports[name]}\n")
    out(quick_reference(reports) + "\n")
    out(example_prompts(omni) + "\n")
    ok = all(report.ok for report in reports.values())
    checked = sum(map(count_lines, reports.values()))
    wrong = sum(len(report.problems) for report in reports.values())
    out(f"✔ all {checked} lines hold" if ok else f"✘ {wrong} of {checked} lines do not hold")
    if json_file is not None:
        data = {
            "ok": ok,
            "seed": seed,
            "device": device,
            "pipelines": {name: each.data() for name, each in reports.items()},
        }
        with whole(json_file) as file:
            file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return ok
