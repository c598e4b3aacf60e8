"""The dry run: six pipelines on real input, every step compared with its specification.

    inputs     what they read           docs      docs/shapes.md and the figures
    pipelines  the six, and `run`       command   `tinyomni dry-run` and its summaries
    specs/     one TOML file each: the calls of the library's own methods, their shapes, and the numbers

The specifications come from the *reference specification*, a worked example of such a model on paper.
"""

from tinyomni.dry_run.command import example_prompts, main, quick_reference
from tinyomni.dry_run.docs import named_calls, shape_table, write_docs
from tinyomni.dry_run.inputs import AUDIO, IMAGE, NEW_TOKENS, Inputs
from tinyomni.dry_run.pipelines import PIPELINES, SPECS, build, default_inputs, lengths, load_spec, run, traced

__all__ = [
    "AUDIO",
    "IMAGE",
    "NEW_TOKENS",
    "PIPELINES",
    "SPECS",
    "Inputs",
    "build",
    "default_inputs",
    "example_prompts",
    "lengths",
    "load_spec",
    "main",
    "named_calls",
    "quick_reference",
    "run",
    "shape_table",
    "traced",
    "write_docs",
]
