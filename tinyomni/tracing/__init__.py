"""The shape tracer: watch any code run, and compare it with a specification.

    with trace("my run") as t:
        model(batch)
    print(t)                 # every annotated call, with named axes in and out
    t.check("spec.toml")     # SpecMismatch unless the run is what the file demands
    sweep(fn, over="samples", want="samples // 160")    # for every length, not one

This package knows no model: it needs torch, jaxtyping and beartype only.

    data          records, trace                reading       rows, table, html, svg, diff
    annotations   what an annotation says       tensors, values  what can be shown of a value
    watch         how a trace hears of calls    recorder      what it notes at each
    functions     which function a frame runs
    mismatch      why a value does not fit      torch_errors  what torch's errors mean
    formula       the language of formulas      spec, sweep   specifications in TOML, all lengths
    checks        run-time checks               glossaries, names  what axes are called and mean
    lines, flow   shapes behind source lines    operations    what happens between calls
    suspicions    what did not fail, but        distinct      a run with another size for each axis
    draft         a first specification from a run
"""

from tinyomni.tracing.checks import check_shapes
from tinyomni.tracing.distinct import distinct_sizes
from tinyomni.tracing.errors import ShapeError
from tinyomni.tracing.formula import SpecError
from tinyomni.tracing.functions import step
from tinyomni.tracing.glossaries import register_glossary
from tinyomni.tracing.mismatch import Mismatch
from tinyomni.tracing.recorder import Recorder, annotate, tokens, trace
from tinyomni.tracing.records import Entry, Ledger, Record, Run, Value
from tinyomni.tracing.spec import Spec, SpecMismatch, SpecReport
from tinyomni.tracing.sweep import Sweep, SweepMismatch, sweep
from tinyomni.tracing.trace import Trace

__all__ = [
    "Entry",
    "Ledger",
    "Mismatch",
    "Record",
    "Recorder",
    "Run",
    "ShapeError",
    "Spec",
    "SpecError",
    "SpecMismatch",
    "SpecReport",
    "Sweep",
    "SweepMismatch",
    "Trace",
    "Value",
    "annotate",
    "check_shapes",
    "distinct_sizes",
    "register_glossary",
    "step",
    "sweep",
    "tokens",
    "trace",
]
