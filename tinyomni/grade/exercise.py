"""What an exercise is. A lesson's file, `lesson_03.py`, holds its exercises one after the other:

    @exercise("Split into heads", minutes=5, level=1)
    def split_heads(x: Float[Tensor, "batch tokens dim"], heads: int) -> Float[Tensor, "batch heads tokens …"]:
        'The oracle: slow and obvious, or an independent implementation; never the solution.'

    @split_heads.cases
    def _(rng): yield "all sizes different", {"x": rng.randn(2, 5, 21), "heads": 3}

    @split_heads.random_inputs
    def _(rng): return {"x": rng.randn(rng.size(), rng.size(), 12), "heads": rng.choice((1, 2, 3, 4))}

    @split_heads.mutant("heads and tokens keep their order: the permute is missing", section="6. Heads …")
    def _(x, heads): return x.reshape(…)

    @split_heads.alternative
    def _(x, heads): return rearrange(…)

The decorated function gives the exercise its name, its typed signature and the names of the axes.
"""

import contextlib
import copy
import functools
import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinyomni.grade.comparison import format_value
from tinyomni.tracing import annotations

Answer = Callable[..., Any]
Draw = Callable[["RandomInputs"], dict[str, Any]]
GRADIENTS = "gradients"  # the derived case that compares these, not the result
RANDOM_CASES = 3  # of each exercise


class RandomInputs:
    """Random tensors from a generator of their own: the same in every run of the program."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal float32 numbers."""
        return torch.randn(shape, generator=self.generator)

    def randint(self, high: int, *shape: int, low: int = 0) -> Int[Tensor, "..."]:
        """Integers from `low` (included) to `high` (excluded)."""
        return torch.randint(low, high, shape, generator=self.generator)

    def randbool(self, *shape: int) -> Bool[Tensor, "..."]:
        """True and False with equal probability."""
        return torch.rand(shape, generator=self.generator) < 0.5

    def size(self, high: int = 5, low: int = 1) -> int:
        """One integer from `low` to `high`, both included."""
        return int(self.randint(high + 1, 1, low=low))

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number between the two."""
        return low + (high - low) * float(torch.rand(1, generator=self.generator))

    def choice(self, options: Sequence[Any]) -> Any:
        """One of them."""
        return options[self.size(len(options) - 1, 0)]

    def chosen(self, options: Sequence[Any], high: int, low: int = 0) -> list[Any]:
        """`low` to `high` of them, with repetitions."""
        return [self.choice(options) for _ in range(self.size(high, low))]


class AnswerError(Exception):
    """An answer that cannot be used as it is; the text is for the learner."""


class Forbid(TorchFunctionMode):
    """Raises AnswerError where a function of these names runs, whatever it was called by: also inside a module."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.names:
            raise AnswerError(f"torch's own `{name}` ran: here the task is to write it yourself")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Mutant:
    """A wrong answer that learners really give. `cause` completes the sentence "this is what happens when"."""

    cause: str
    section: str  # the heading in the lesson that explains it
    function: Answer


@dataclass(frozen=True)
class Outcome:
    """The result of one call: a value or an error, and the inputs that were modified in place."""

    value: Any = None
    error: BaseException | None = None
    modified: tuple[str, ...] = ()
    location: str = ""  # of an error in another process: the learner's line
    raised_in: str = ""  # and the function

    @property
    def empty(self) -> bool:
        """Is this what an unfilled stub gives?"""
        return isinstance(self.error, NotImplementedError) or (
            self.error is None and (self.value is None or self.value is ...)
        )


@dataclass(frozen=True)
class Case:
    """Named inputs and the oracle's outcome for them."""

    name: str
    inputs: dict[str, Any]
    expected: Outcome
    derived: bool = False  # made from the first case or drawn at random, not written in the lesson's file


@dataclass(frozen=True)
class Replacement:
    """What `swap` replaces: a dotted path in the library, and how the answer is adapted to it."""

    path: str
    adapt: Callable[..., Any] | None = None


class Exercise:
    """One task: oracle, cases, mutants, alternative solutions. `check.<name>` grades with it, the tests prove it."""

    def __init__(
        self,
        oracle: Answer,
        title: str,
        minutes: int,
        level: int,
        answer_name: str = "",
        raises: tuple[type[Exception], ...] = (),
        rtol: float = 1e-4,
        atol: float = 1e-5,
        float64: bool = True,
        starter: Answer | None = None,
        taught_in: str = "",
        gradients: tuple[str, ...] = (),
        forbidden: tuple[str, ...] = (),
    ) -> None:
        self.oracle, self.name = oracle, oracle.__name__
        self.title, self.minutes, self.level = title, minutes, level
        self.answer_name = answer_name or self.name
        self.raises, self.rtol, self.atol, self.float64, self.starter = raises, rtol, atol, float64, starter
        self.gradients, self.forbidden = gradients, forbidden
        self.signature = inspect.signature(oracle)
        self.hints = annotations.hints_of(oracle)
        self.mutants: list[Mutant] = []
        self.alternatives: list[Answer] = []
        self.replacements: list[Replacement] = []
        self.notebook = ""  # the lesson's file name, set by the registry
        self._taught_in = taught_in
        self._cases: Callable[[RandomInputs], Iterable[tuple[str, dict[str, Any]]]] | None = None
        self.draw: Draw | None = None
        self._invoke: Callable[..., Any] | None = None

    @property
    def taught_in(self) -> str:
        """The file name of the lesson that explains it."""
        return self._taught_in or self.notebook

    # -- how a lesson's file describes it ------------------------------------------------------------------------

    def cases(self, function: Callable[[RandomInputs], Iterable[tuple[str, dict[str, Any]]]]) -> None:
        """Yields (name, inputs). In the first one, all sizes differ and exceed 1: further ones are derived from it."""
        self._cases = function

    def random_inputs(self, function: Draw) -> None:
        """Draws the inputs of one case: sizes, repeats, ties, extremes. It is called several times."""
        self.draw = function

    def invoke(self, function: Callable[..., Any]) -> None:
        """How an answer is called, `(answer, **inputs)`, where `answer(**inputs)` is not enough (classes, say)."""
        self._invoke = function

    def mutant(self, cause: str, section: str) -> Callable[[Answer], Answer]:
        """A wrong answer. It must fail, and no other mutant may behave like it in all cases."""

        def add(function: Answer) -> Answer:
            self.mutants.append(Mutant(cause, section, function))
            return function

        return add

    def alternative(self, function: Answer) -> Answer:
        """A correct answer that is written differently from the solution."""
        self.alternatives.append(function)
        return function

    def replaces(self, path: str, adapt: Callable[..., Any] | None = None) -> Callable[[Answer], Answer]:
        """What an answer can replace in the library. Decorates the adapter, or is called alone without one.

        A function: `adapt(answer)` → a function with the library's signature. A class: `adapt(answer, original)` → the
        learner's module with the weights of `original`.
        """
        index = len(self.replacements)
        self.replacements.append(Replacement(path, adapt))

        def add(function: Answer) -> Answer:
            self.replacements[index] = Replacement(path, function)
            return function

        return add

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, answer: Answer, inputs: dict[str, Any]) -> Outcome:
        """Call an answer on a copy of the inputs, from a fixed random state."""
        call = functools.partial(self._invoke, answer) if self._invoke else self.caller(answer)
        with Forbid(self.forbidden) if self.forbidden else contextlib.nullcontext():
            return observe(call, inputs)

    def caller(self, answer: Answer) -> Answer:
        """Positional arguments as far as the inputs have no gap, so that a learner may rename the parameters."""
        names = list(self.signature.parameters)

        def call(**inputs: Any) -> Any:
            gap = next((index for index, name in enumerate(names) if name not in inputs), len(names))
            positional = [inputs[name] for name in names[:gap]]
            return answer(*positional, **{name: value for name, value in inputs.items() if name not in names[:gap]})

        return call

    def all_inputs(self) -> list[tuple[str, dict[str, Any], bool]]:
        """(name, inputs, derived) of the lesson's cases, of random ones, and of those derived from the first one."""
        if self._cases is None:
            raise ValueError(f"exercise {self.name} has no cases")
        written = list(self._cases(RandomInputs(zlib.crc32(self.name.encode()))))
        named = [(name, inputs, False) for name, inputs in written]
        rng = RandomInputs(zlib.crc32(f"{self.name} at random".encode()))
        drawn = [(f"random {n}", self.draw(rng)) for n in range(1, RANDOM_CASES + 1)] if self.draw else []
        return named + [(name, inputs, True) for name, inputs in (*drawn, *self.derived_cases(written[0][1]))]

    @functools.cached_property
    def all_cases(self) -> list[Case]:
        """All of `all_inputs`, with the oracle's outcomes."""
        cases = []
        for name, inputs, derived in self.all_inputs():
            # the oracle takes the inputs as they are, however an answer is invoked
            expected = self.expected_gradients(inputs) if name == GRADIENTS else observe(self.oracle, inputs)
            if expected.error is not None and not isinstance(expected.error, self.raises):
                raise ValueError(f"exercise {self.name}: the oracle fails in case “{name}”") from expected.error
            if expected.modified:
                raise ValueError(f"exercise {self.name}: the oracle modifies {expected.modified} in case “{name}”")
            cases.append(Case(name, inputs, expected, derived))
        return cases

    def expected_gradients(self, inputs: dict[str, Any]) -> Outcome:
        """Those of the oracle; if it works with plain numbers, of the first alternative that has them."""
        outcomes = [observe(self.oracle, inputs), *(self.run(right, inputs) for right in self.alternatives)]
        return next((each for each in outcomes if each.error is None), outcomes[0])

    @functools.cached_property
    def mutant_outcomes(self) -> list[list[Outcome]]:
        """The outcome of each mutant in each case."""
        return [[self.run(mutant.function, case.inputs) for case in self.all_cases] for mutant in self.mutants]

    def derived_cases(self, first: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The first case with another memory layout, in double precision, and with a look at the gradients."""
        tensors = [value for _, value in tensors_of(first)]
        if any(value.ndim for value in tensors):
            yield "not contiguous in memory", change_tensors(first, non_contiguous)
        if self.float64 and any(value.is_floating_point() for value in tensors):
            yield "float64", change_tensors(first, to_float64)
        if self.gradients:
            watched = {name: first[name] for name in self.gradients}
            yield GRADIENTS, first | change_tensors(watched, lambda value: value.clone().requires_grad_())

    def hint(self, name: str) -> Any:
        """The annotation of an input, or of the result (`return`)."""
        return self.hints.get(name)

    def describe_inputs(self, case: Case) -> list[str]:
        """One line for each input."""
        return [f"{name} = {format_value(value, self.hint(name))}" for name, value in case.inputs.items()]

    def __repr__(self) -> str:
        where = f"{self.notebook} {self.name}"
        return f"Exercise({where}: {self.title}, {self.minutes} minutes, {len(self.mutants)} mutants)"


def exercise(title: str, minutes: int, level: int, **options: Any) -> Callable[[Answer], Exercise]:
    """Make an exercise from its oracle. `level` is 1 to 3.

    `answer_name`: the name that the learner defines, where it differs (a class). `raises`: the errors that some cases
    expect. `rtol`, `atol`: the tolerances. `float64=False`: no case in double precision. `starter`: the broken program
    in the stub, where there is something to debug. `taught_in`: the lesson that explains it, if it is another one.
    `gradients`: the inputs that training needs a gradient of. `forbidden`: torch functions that must not run.
    """
    return lambda oracle: Exercise(oracle, title, minutes, level, **options)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def observe(function: Answer, inputs: dict[str, Any]) -> Outcome:
    """Call `function` on a copy of the inputs, from a fixed random state, and look at the inputs afterwards."""
    copies = copy.deepcopy(inputs)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            value = to_python(function(**copies))
            leaves = {name: x for name, x in tensors_of(copies) if x.requires_grad}
            if leaves and value is not None and value is not ...:  # an empty answer stays one
                value = gradients_of(value, leaves)
        except (Exception, SystemExit) as error:  # whatever a learner's code raises belongs in the verdict
            return Outcome(error=error)
    return Outcome(value, modified=tuple(name for name in inputs if not unchanged(inputs[name], copies[name])))


def gradients_of(value: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each input, from a sum of the results with unequal weights. Raises AnswerError for none."""
    results = [x for x in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(x, Tensor)]
    total = sum((x.flatten() * torch.arange(1.0, x.numel() + 1).cos().to(x.dtype)).sum() for x in results)
    names = list(leaves)
    if isinstance(total, Tensor) and total.requires_grad:
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        names = [name for name, gradient in zip(leaves, found, strict=True) if gradient is None]
    if names:
        raise AnswerError(
            f"no gradient reaches {' and '.join(names)}: "
            "is a value detached, by `detach`, `data`, `item`, `torch.tensor` or `no_grad`?"
        )
    return {f"gradient of {name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def to_python(value: Any) -> Any:
    """NumPy's scalars as Python's numbers, in lists and tuples too."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(to_python(item) for item in value)
    return value


def tensors_of(inputs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the tensors among the inputs, and of those in a dictionary."""
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}[{key!r}]", each) for key, each in tensors_of(value))


def change_tensors(inputs: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The inputs, each of them changed; a dictionary value by value."""
    return {
        name: change_tensors(value, change) if isinstance(value, dict) else change(value)
        for name, value in inputs.items()
    }


def non_contiguous(value: Any) -> Any:
    """A tensor with the same numbers and another memory layout; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return torch.stack([value, value], dim=-1)[..., 0] if value.ndim == 1 else value.mT.contiguous().mT


def to_float64(value: Any) -> Any:
    """Floats in double precision, those of a module too."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def unchanged(before: Any, after: Any) -> bool:
    """Are these still the same inputs? The weights of a module count too."""
    if isinstance(before, nn.Module):
        return unchanged(dict(before.state_dict()), dict(after.state_dict()))
    if isinstance(before, Tensor):
        return before.shape == after.shape and before.dtype == after.dtype and torch.equal(
            before.nan_to_num() if before.is_floating_point() else before,
            after.nan_to_num() if after.is_floating_point() else after,
        )  # fmt: skip
    if isinstance(before, dict):
        return list(before) == list(after) and all(unchanged(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(unchanged, before, after))
    return before == after if isinstance(before, (int, float, str, bool, set)) else True


# ---- answers that are classes ---------------------------------------------------------------------------------------


def parameters_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Of a learner's layer, by name. Raises AnswerError for anything else."""
    if not isinstance(layer, nn.Module):
        raise AnswerError(f"expected a layer, an nn.Module; got a {type(layer).__name__}")
    return dict(layer.named_parameters())


def load_weights(layer: nn.Module, **weights: Float[Tensor, "..."]) -> nn.Module:
    """Copy tensors into a learner's layer: `weight=`, or `gate__weight=` for `layer.gate.weight`."""
    parameters = parameters_of(layer)
    expected = {name.replace("__", "."): value for name, value in weights.items()}
    check_parameter_names(set(expected), set(parameters))
    for name, value in expected.items():
        if parameters[name].shape != value.shape:
            raise AnswerError(f"{name}: expected shape {tuple(value.shape)}, got {tuple(parameters[name].shape)}")
        parameters[name].data = value.detach().clone()
    return layer


def share_weights(layer: nn.Module, original: nn.Module) -> nn.Module:
    """Let a learner's layer use the very parameters of a library layer, for `replaces`."""
    check_parameter_names(set(parameters_of(original)), set(parameters_of(layer)))
    for name, module in layer.named_modules():
        source = original.get_submodule(name)
        for key in list(module._parameters):
            module._parameters[key] = source._parameters[key]
    return layer.train(original.training)


def check_parameter_names(expected: set[str], actual: set[str]) -> None:
    """Raises AnswerError unless both are the same."""
    if expected != actual:
        raise AnswerError(f"expected the parameters {', '.join(sorted(expected))}; got {', '.join(sorted(actual))}")
