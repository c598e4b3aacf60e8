"""The shape tracer: watch any annotated code run, and hold it against a specification.

    with trace("my run") as t:
        model(batch)
    print(t)                 # every annotated call, with named axes in and out
    t.check("spec.toml")     # SpecMismatch unless the run is what the file demands

This room knows no model: it needs torch, jaxtyping and beartype only.
"""

from tinyomni.tracing.checks import check_shapes
from tinyomni.tracing.spec import Report, Spec, SpecError, SpecMismatch
from tinyomni.tracing.trace import Record, Trace, Value, step, tokens, trace

__all__ = [
    "Record",
    "Report",
    "Spec",
    "SpecError",
    "SpecMismatch",
    "Trace",
    "Value",
    "check_shapes",
    "step",
    "tokens",
    "trace",
]
