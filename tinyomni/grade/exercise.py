"""What an exercise is. A lesson's file, `lesson_03.py`, holds its exercises one after the other:

    @exercise("Cut into heads", minutes=5, level=1)
    def split_heads(x: Float[Tensor, "batch tokens features"], heads: int) -> Float[Tensor, "batch heads tokens …"]:
        'The oracle: slow and obvious, or somebody else's implementation; never the solution.'

    @split_heads.cases
    def _(draw): yield "all sizes different", {"x": draw(2, 5, 21), "heads": 3}

    @split_heads.mutant("heads and tokens keep their places: the permute is missing", see="6. Heads: several looks …")
    def _(x, heads): return x.reshape(…)

    @split_heads.right
    def _(x, heads): return rearrange(…)

The function that is decorated gives the exercise its name, its typed signature and the names of the axes.
"""

import copy
import functools
import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinyomni.grade.compare import show
from tinyomni.tracing import annotations

Answer = Callable[..., Any]


class Draw:
    """Random inputs that are the same at each call of the program."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Float[Tensor, "..."]:
        """Normal float32 numbers."""
        return torch.randn(shape, generator=self.generator)

    def ints(self, high: int, *shape: int, low: int = 0) -> Int[Tensor, "..."]:
        """Whole numbers from `low` up to `high`, which is left out."""
        return torch.randint(low, high, shape, generator=self.generator)

    def bools(self, *shape: int) -> Bool[Tensor, "..."]:
        """True or False, evenly."""
        return torch.rand(shape, generator=self.generator) < 0.5


class AnswerError(Exception):
    """An answer that cannot be used as it is; the text is for the learner."""


@dataclass(frozen=True)
class Mutant:
    """A wrong answer that people really give: `why` goes on from "this is what happens when"."""

    why: str
    see: str  # the heading in the lesson
    function: Answer


@dataclass(frozen=True)
class Outcome:
    """What one call gave: a value or an error, and which inputs were no longer what they had been."""

    value: Any = None
    error: Exception | None = None
    changed: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """What an empty stub gives."""
        return isinstance(self.error, NotImplementedError) or (
            self.error is None and (self.value is None or self.value is ...)
        )


@dataclass(frozen=True)
class Case:
    """Inputs with a name, and what is due for them."""

    what: str
    inputs: dict[str, Any]
    due: Outcome
    derived: bool = False  # made from the first case by the framework


@dataclass(frozen=True)
class Part:
    """What `swap` replaces: the dotted path in the library, and how the answer is made to fit there."""

    path: str
    adapt: Callable[..., Any] | None = None


class Exercise:
    """One task: oracle, cases, mutants, right answers. `check.<name>` judges with it, the tests prove it."""

    def __init__(
        self,
        oracle: Answer,
        title: str,
        minutes: int,
        level: int,
        answer: str = "",
        raises: tuple[type[Exception], ...] = (),
        rtol: float = 1e-4,
        atol: float = 1e-5,
        float64: bool = True,
        given: Answer | None = None,
        taught: str = "",
    ) -> None:
        self.oracle, self.name = oracle, oracle.__name__
        self.title, self.minutes, self.level = title, minutes, level
        self.answer = answer or self.name
        self.raises, self.rtol, self.atol, self.float64, self.given = raises, rtol, atol, float64, given
        self.signature = inspect.signature(oracle)
        self.hints = annotations.hints_of(oracle)
        self.mutants: list[Mutant] = []
        self.rights: list[Answer] = []
        self.parts: list[Part] = []
        self.book = ""  # the lesson's file name, set when the lesson is found
        self._taught = taught
        self._cases: Callable[[Draw], Iterable[tuple[str, dict[str, Any]]]] | None = None
        self._use: Callable[..., Any] | None = None

    @property
    def taught(self) -> str:
        """The lesson that explains it, by its file name."""
        return self._taught or self.book

    # -- how a lesson's file describes it ------------------------------------------------------------------------

    def cases(self, function: Callable[[Draw], Iterable[tuple[str, dict[str, Any]]]]) -> None:
        """Yields (name, inputs). In the first one, all sizes differ and exceed 1: further ones are made from it."""
        self._cases = function

    def use(self, function: Callable[..., Any]) -> None:
        """How an answer is called, `(answer, **inputs)`, where that is more than `answer(**inputs)`."""
        self._use = function

    def mutant(self, why: str, see: str) -> Callable[[Answer], Answer]:
        """A wrong answer. It must fail, and no other mutant may behave like it on all cases."""

        def add(function: Answer) -> Answer:
            self.mutants.append(Mutant(why, see, function))
            return function

        return add

    def right(self, function: Answer) -> Answer:
        """A right answer that is written differently from the solution."""
        self.rights.append(function)
        return function

    def replaces(self, path: str, adapt: Callable[..., Any] | None = None) -> Callable[[Answer], Answer]:
        """What of the library an answer can stand in for. Decorates the adapter, or stands alone without one.

        A function: `adapt(answer)` → a function with the library's signature. A class: `adapt(answer, old)` → the
        learner's module with the weights of `old`.
        """
        place = len(self.parts)
        self.parts.append(Part(path, adapt))

        def add(function: Answer) -> Answer:
            self.parts[place] = Part(path, function)
            return function

        return add

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, answer: Answer, inputs: dict[str, Any]) -> Outcome:
        """Call an answer on a copy of the inputs, with the random numbers always the same."""
        given = copy.deepcopy(inputs)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                value = self._use(answer, **given) if self._use else self.call(answer, given)
            except Exception as error:  # somebody's answer: whatever it raises belongs into the verdict
                return Outcome(error=error)
        changed = tuple(name for name in inputs if not unchanged(inputs[name], given[name]))
        return Outcome(value, changed=changed)

    def call(self, answer: Answer, inputs: dict[str, Any]) -> Any:
        """By place as far as the inputs go without a gap, so that a learner may name the arguments differently."""
        names = list(self.signature.parameters)
        gap = next((at for at, name in enumerate(names) if name not in inputs), len(names))
        first = [inputs[name] for name in names[:gap]]
        return answer(*first, **{name: value for name, value in inputs.items() if name not in names[:gap]})

    @functools.cached_property
    def all_cases(self) -> list[Case]:
        """The lesson's cases with what the oracle says, and three made from the first one."""
        if self._cases is None:
            raise ValueError(f"exercise {self.name}: it has no cases")
        draw = Draw(zlib.crc32(self.name.encode()))
        drawn = [(what, inputs, False) for what, inputs in self._cases(draw)]
        drawn += [(what, inputs, True) for what, inputs in self.derived(drawn[0][1])]
        cases = []
        for what, inputs, derived in drawn:
            due = self.due(inputs)
            if due.error is not None and not isinstance(due.error, self.raises):
                raise ValueError(f"exercise {self.name}: the oracle fails in the case “{what}”") from due.error
            if due.changed:
                raise ValueError(f"exercise {self.name}: the oracle changes {due.changed} in the case “{what}”")
            cases.append(Case(what, inputs, due, derived))
        return cases

    @functools.cached_property
    def mutant_outcomes(self) -> list[list[Outcome]]:
        """What each mutant gives in all cases."""
        return [[self.run(mutant.function, case.inputs) for case in self.all_cases] for mutant in self.mutants]

    def due(self, inputs: dict[str, Any]) -> Outcome:
        """What the oracle says; it takes the inputs as they are, whatever `use` does with an answer."""
        given = copy.deepcopy(inputs)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                value = self.oracle(**given)
            except Exception as error:  # judged by the caller
                return Outcome(error=error)
        return Outcome(value, changed=tuple(name for name in inputs if not unchanged(inputs[name], given[name])))

    def derived(self, first: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The first case with other memory and in double precision."""
        if any(isinstance(value, Tensor) and value.ndim for value in first.values()):
            yield "not contiguous in memory", {name: scattered(value) for name, value in first.items()}
        if self.float64 and any(isinstance(value, Tensor) and value.is_floating_point() for value in first.values()):
            yield "float64", {name: doubled(value) for name, value in first.items()}

    def hint(self, name: str) -> Any:
        """The annotation of an input, or of the result (`return`)."""
        return self.hints.get(name)

    def fed(self, case: Case) -> list[str]:
        """The inputs in words, a line for each."""
        return [f"{name} = {show(value, self.hint(name))}" for name, value in case.inputs.items()]

    def __repr__(self) -> str:
        return f"Exercise({self.book} {self.name}: {self.title}, {self.minutes} minutes, {len(self.mutants)} mutants)"


def exercise(title: str, minutes: int, level: int, **more: Any) -> Callable[[Answer], Exercise]:
    """Make an exercise from its oracle. `level` is 1 to 3.

    `answer`: the name that the learner defines, where it is another one (a class). `raises`: the errors that are due in
    some cases. `rtol`, `atol`: how near is near enough. `float64=False`: no case in double precision. `given`: the
    broken program of the stub, where there is something to mend. `taught`: the lesson that explains it, if another one.
    """
    return lambda oracle: Exercise(oracle, title, minutes, level, **more)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def scattered(value: Any) -> Any:
    """A tensor with the same numbers whose neighbours are not neighbours in memory."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return torch.stack([value, value], dim=-1)[..., 0] if value.ndim == 1 else value.mT.contiguous().mT


def doubled(value: Any) -> Any:
    """Floats in double precision, in a module too."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def unchanged(before: Any, after: Any) -> bool:
    """Are these the same inputs still? Weights of a module count too."""
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


def fill(layer: nn.Module, **weights: Float[Tensor, "..."]) -> nn.Module:
    """Put these numbers into a learner's layer, `layer.weight` or, with `__` for a dot, `layer.gate.weight`."""
    own = dict(layer.named_parameters())
    wanted = {name.replace("__", "."): value for name, value in weights.items()}
    if set(own) != set(wanted):
        raise AnswerError(f"the parameters should be {', '.join(sorted(wanted))}; these are {', '.join(sorted(own))}")
    for name, value in wanted.items():
        if own[name].shape != value.shape:
            raise AnswerError(f"{name} should be {tuple(value.shape)}; this is {tuple(own[name].shape)}")
        own[name].data = value.detach().clone()
    return layer


def borrow(layer: nn.Module, old: nn.Module) -> nn.Module:
    """Let a learner's layer use the very weights of a library's, for `replaces`."""
    mine, theirs = {name for name, _ in layer.named_parameters()}, {name for name, _ in old.named_parameters()}
    if mine != theirs:
        raise AnswerError(f"the parameters should be {', '.join(sorted(theirs))}; these are {', '.join(sorted(mine))}")
    for name, module in layer.named_modules():
        other = old.get_submodule(name)
        for key in list(module._parameters):
            module._parameters[key] = other._parameters[key]
    return layer.train(old.training)
