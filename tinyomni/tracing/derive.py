"""A length as a formula, from symbolic runs: torch carries the length as a symbol through every operator.

One run gives the formula of the result and the conditions under which the same operators run again (n < 1000, n even).
A length that no path covers is run next, until the paths cover all lengths or there are too many of them. This is what
torch.export does with a dynamic dimension; here the conditions are read and decided, not only guarded against.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jaxtyping
import torch
from torch import SymInt
from torch.nn import functional

from tinyomni.tracing.formula import SpecError
from tinyomni.tracing.indices import Indices
from tinyomni.tracing.lengths import recurrent
from tinyomni.tracing.piecewise import Condition, Finding, Path, Piecewise, Undecided, looks, part, piecewise
from tinyomni.tracing.symbol_watch import questions, watched

MAX_PATHS = 32
MAX_POINTS = 3  # paths of a single length: after so many, the function is one that no symbol passes through
MAX_LOOKS = 400_000  # lengths times formulas, evaluated in Python
MAX_FLOAT = 2**20  # a·n / b in double precision is exact for such small a and b as long as a·n < 2**53

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "Equality": lambda a, b: a == b,
    "Unequality": lambda a, b: a != b,
    "LessThan": lambda a, b: a <= b,
    "StrictLessThan": lambda a, b: a < b,
    "GreaterThan": lambda a, b: a >= b,
    "StrictGreaterThan": lambda a, b: a > b,
}


class Derivation:
    """The paths of one function from a length to a length."""

    def __init__(
        self,
        call: Callable[[Any], Any],
        over: str,
        refusal: Callable[[int], str],
        caught: Callable[[int], Any],
        unseen: dict[str, None],
    ) -> None:
        """`call` gives the length for a symbol; `refusal` says why an ordinary length is not taken, or nothing;
        `caught` tells the errors that the function catches for it; `unseen` collects operations with unknown indices.
        """
        self.unseen = unseen
        self.call, self.over, self.refusal, self.caught = call, over, refusal, caught
        self.paths: list[Path] = []
        self.differences: dict[str, Piecewise] = {}
        self.points = self.looks = 0
        self.floats = False  # a division in floating point is part of it

    def compare(self, want: Piecewise | None, start: int) -> Finding | list[tuple[int, int, int, Path]]:
        """All lengths from `start` on: the first that is not `want`, or every piece. Raises Undecided."""
        while True:
            self.looks += looks(self.paths, want)
            if self.looks > MAX_LOOKS:
                raise Undecided(f"{self.looks:,} lengths would have to be compared")
            found = part(self.paths, want, start)
            if not isinstance(found, Finding) or found.value is not None:
                return found
            if len(self.paths) >= MAX_PATHS:
                raise Undecided(f"{MAX_PATHS} symbolic runs do not cover every {self.over}")
            self.explore(found.n)

    def at(self, n: int) -> int | None:
        """The length that the paths give; None where it is refused, or not known."""
        path = next((each for each in self.paths if each.covers(n)), None)
        return path.value.at(n) if path is not None and path.value is not None else None

    def explore(self, n: int) -> None:
        """One more path, the one on which n lies."""
        with questions() as asked, watched() as watch:
            rules = ShapesByRule(self.unseen)
            expression, guards, error = symbolic(self.call, n, rules)
        seen = [*asked, *sorted(watch.asked), *rules.asked]
        refusal = "" if error is None else self.refusal(n)
        if error is not None and not refusal:
            raise Undecided(f"the symbolic run failed: {_short(error)}")
        if refusal:  # a message may have the length in it
            seen = [what for what in seen if what != "the text"]
        if error is None and watch.errors and watch.errors != self.caught(n):
            file, line, kind = watch.errors[0]
            raise Undecided(
                f"the function catches {kind} at {os.path.basename(file)}:{line}, which numbers may not raise"
            )
        if seen:
            raise Undecided(f"the function asks for {' and '.join(dict.fromkeys(seen))} of {self.over}")
        if watch.given:
            raise Undecided(f"what {' and '.join(sorted(watch.given))} does with a symbol for {self.over} is not known")
        try:
            conditions = tuple(self.condition(guard) for guard in guards)
            text = "" if refusal else write(expression, self.over)
            path = Path(conditions, None if refusal else piecewise(text, self.over), text, refusal)
        except SpecError as error_:  # too long
            raise Undecided(f"the derived formula cannot be read: {error_}") from error_
        self.floats |= "True" in str(expression) or "ToFloat" in str(expression)
        if path.covers(n) and not any(path.covers(n + more) for more in range(1, 64)):
            self.points += 1
            if self.points > MAX_POINTS:
                raise Undecided(f"the function asks for the value of {self.over}, at {self.over} = {n}")
        if not path.covers(n):
            raise Undecided(f"the conditions of the symbolic run do not hold at {self.over} = {n}")
        self.paths.append(path)

    def condition(self, guard: Any) -> Condition:
        """A relation, or several joined by and, or, not."""
        name = type(guard).__name__
        if name in ("And", "Or", "Not"):
            parts = [self.condition(each) for each in guard.args]
            turns = tuple(turn for each in parts for turn in each.turns)
            if name == "Not":
                return Condition(lambda n: not parts[0].holds(n), turns)
            join = all if name == "And" else any
            return Condition(lambda n: join(each.holds(n) for each in parts), turns)
        if name in ("BooleanTrue", "BooleanFalse"):
            return Condition(lambda n: name == "BooleanTrue", ())
        if name not in RELATIONS:
            raise Undecided(f"a condition of another kind: {_readable(guard, self.over)}")
        left, right = (write(each, self.over) for each in guard.args)
        text = f"({left}) - ({right})"  # paths have most conditions in common: each is followed once
        difference = self.differences.setdefault(text, piecewise(text, self.over))
        relation = RELATIONS[name]
        return Condition(lambda n: relation(difference.at(n), 0), (*difference.turns, difference))


class ShapesByRule(Indices):
    """Operators for which torch fixes a symbolic length, by others with the same result that do not."""

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Called for each operator."""
        if func in POOLS and not kwargs.get("return_indices"):
            two, names = POOLS[func]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            given["stride"] = given.get("stride") or given["kernel_size"]
            for name, other in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
                if name in given:
                    size = given[name]
                    given[name] = (other, size[0] if isinstance(size, (tuple, list)) else size)
            given.pop("return_indices", None)
            return two(given.pop("input").unsqueeze(-2), **given).squeeze(-2)
        known = recurrent(func, args)
        return func(*args, **kwargs) if known is None else known


_MAX = (functional.max_pool2d, ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"))
_AVERAGE = (functional.avg_pool2d, ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"))
POOLS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    functional.max_pool1d: _MAX,
    torch.max_pool1d: _MAX,
    torch.avg_pool1d: _AVERAGE,
}


def symbolic(call: Callable[[Any], Any], hint: int, rules: ShapesByRule) -> tuple[Any, list[Any], Exception | None]:
    """The result as a sympy expression, the conditions of this path, and the exception where it ended in one."""
    try:  # these names are not public, and importing them takes seconds: only when they are needed
        from torch._dispatch.python import enable_python_dispatcher
        from torch._dynamo.source import ConstantSource
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

        environment = ShapeEnv()
        source = ConstantSource("length")
        symbol = environment.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        length = environment.create_symintnode(symbol, hint=hint, source=source)
        mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    except (ImportError, AttributeError, TypeError) as error:  # not public: other versions of torch may differ
        raise Undecided(f"this torch has no symbolic lengths for it: {_short(error)}") from error
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer without a symbolic rule
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # a check of shapes would compare, and so fix, every symbol
    result, error_, logged = None, None, logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch's tracebacks of what has no symbolic rule
    try:
        with warnings.catch_warnings(), mode, enable_python_dispatcher(), rules:
            warnings.simplefilter("ignore")  # of the function; an ordinary run has shown them
            result = call(length)
    except Exception as error:  # any of torch's, or the function's own: who calls decides
        error_ = error
    finally:
        logging.disable(logged)
        torch.backends.mha.set_fastpath_enabled(fast)
        jaxtyping.config.update("jaxtyping_disable", checks)
    guards = [guard.expr for guard in environment.guards]
    if environment.deferred_runtime_asserts:
        raise Undecided("the length depends on values")
    return result.node.expr if isinstance(result, SymInt) else result, guards, error_


def write(expression: Any, over: str) -> str:
    """A sympy expression in the language of formulas. Raises Undecided for what has no place in it."""
    if isinstance(expression, (int, str)):
        return str(expression)
    name = type(expression).__name__
    if expression.is_Integer:
        return str(int(expression))
    if expression.is_Symbol:
        if not str(expression).startswith("s"):
            raise Undecided("the length depends on values")
        return over
    if name in ("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt"):
        ratio = _ratio(expression.args[0])
        if ratio is None or (name == "RoundToInt" and ratio[2] % 2 == 0):  # ties go to the even number
            raise Undecided(f"the length goes through a float: {_readable(expression, over)}")
        factor, value, bottom = ratio
        top = write(value, over) if factor == 1 else f"({factor} * {write(value, over)})"
        down, up = f"({top} // {bottom})", f"(-(-{top} // {bottom}))"
        near = f"((2 * {top} + {bottom}) // {2 * bottom})"
        toward_zero = f"(max(0, {down}) + min(0, {up}))"
        return {"CeilToInt": up, "FloorToInt": down, "RoundToInt": near, "TruncToInt": toward_zero}[name]
    signs = {"Add": " + ", "Mul": " * ", "FloorDiv": " // ", "CleanDiv": " // ", "Mod": " % ", "PythonMod": " % "}
    if name == "Mul" and expression.args[0] == -1:
        return f"(-{write(-expression, over)})"
    if name in signs:
        return f"({signs[name].join(write(each, over) for each in expression.args)})"
    if name in ("Min", "Max"):
        return f"{name.lower()}({', '.join(write(each, over) for each in expression.args)})"
    if name == "Pow" and expression.args[1].is_Integer and 1 < int(expression.args[1]) < 5:
        return f"({' * '.join([write(expression.args[0], over)] * int(expression.args[1]))})"
    raise Undecided(f"the length is {_readable(expression, over)}, not a formula of + - * // % min max")


def _ratio(expression: Any) -> tuple[int, Any, int] | None:
    """(a, x, b) for a·x / b in floats, where that is exact for a·x < 2**53: IntTrueDiv(x, b), or 1.5 * ToFloat(x)."""
    name = type(expression).__name__
    if name == "IntTrueDiv" and expression.args[1].is_Integer and 0 < int(expression.args[1]) < MAX_FLOAT:
        return 1, expression.args[0], int(expression.args[1])
    if name == "Mul" and len(expression.args) == 2 and expression.args[0].is_Float:
        factor, value = Fraction(float(expression.args[0])), expression.args[1]
        if type(value).__name__ == "ToFloat" and abs(factor.numerator) < MAX_FLOAT > factor.denominator:
            return factor.numerator, value.args[0], factor.denominator
    return None


def _readable(expression: Any, over: str) -> str:
    """torch's own text, with the axis for the symbol."""
    return re.sub(r"\bs\d+\b", over, str(expression))[:120]


def _short(error: Exception) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
