"""The shape tracer: watch any code run, and hold it against a specification.

    with trace("my run") as t:
        model(batch)
    print(t)                 # every annotated call, with named axes in and out
    t.check("spec.toml")     # SpecMismatch unless the run is what the file demands
    sweep(fn, over="samples", want="samples // 160")    # for every length, not one

This room knows no model: it needs torch, jaxtyping and beartype only.

    annotations  what is read from an annotation     records  plain data of a call, folding
    trace        the profile hook                    explain  why a shape does not fit
    formula      the small language of formulas      spec     specifications in TOML
    sweep        all lengths                         render   HTML and SVG
    checks       run-time checks, without a trace
"""

from tinyomni.tracing.errors import ShapeError
from tinyomni.tracing.checks import check_shapes
from tinyomni.tracing.formula import SpecError
from tinyomni.tracing.records import Entry, Ledger, Record, Value
from tinyomni.tracing.spec import SpecReport, Spec, SpecMismatch
from tinyomni.tracing.sweep import Sweep, SweepMismatch, sweep
from tinyomni.tracing.trace import Trace, step, tokens, trace

__all__ = [
    "Entry",
    "Ledger",
    "Record",
    "SpecReport",
    "ShapeError",
    "Spec",
    "SpecError",
    "SpecMismatch",
    "Sweep",
    "SweepMismatch",
    "Trace",
    "Value",
    "check_shapes",
    "step",
    "sweep",
    "tokens",
    "trace",
]
