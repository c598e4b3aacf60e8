"""All lengths, not one: find the formula of a length from where it jumps, and hold it against the one you expect.

Strided convolutions, pooling, an STFT, slicing and division by a whole number each turn a length n into ⌊(n + b) / c⌋,
and such steps compose to one more: ⌊(⌊(n + b) / c⌋ + d) / e⌋ = ⌊(n + b + c·d) / (c·e)⌋. A formula of this kind is
periodic, so that its jumps over two whole periods decide it for every n.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tinyomni.tracing import annotations
from tinyomni.tracing.formula import Floor, SpecError, evaluate, floor_form

LONGEST = 2**22  # a function that takes no length up to here, or gives the same for all, is given up
MOST_JUMPS = 32  # in one period
FAR = (10_007, 100_003, 1_000_003)  # beyond the two periods: is the length really of this kind?
REFUSALS = (ValueError, RuntimeError, IndexError, AssertionError)


class SweepMismatch(AssertionError):
    """The lengths are not what the formula says."""


@dataclass(frozen=True)
class Sweep:
    """A formula that holds for every length, and how that was seen."""

    name: str
    over: str
    form: Floor
    least: int  # the shortest input that the function takes
    refusal: str  # what it says to shorter input
    jumps: tuple[int, ...]
    calls: int
    longest: int | None = None  # the longest input that it takes, if there is one

    def __str__(self) -> str:
        end = "" if self.longest is None else f", up to {self.longest}, the longest that it takes"
        text = [
            f"{self.name}: {self.form.text(self.over)} for every {self.over} ≥ {self.least}{end}",
            f"  it jumps at {', '.join(map(str, self.jumps))}: two whole periods; {self.calls} lengths looked at",
        ]
        caps = [str(cap) for cap in (self.form.least, self.form.most) if cap is not None]
        text += [f"  caps at {' and '.join(caps)}, looked at on both sides"] if caps else []
        text += [f"  {self.over} < {self.least}: {self.refusal}"] if self.refusal else []
        return "\n".join(text)


class ShapesOnly(TorchFunctionMode):
    """Every operation runs on the meta device, also those on a module's real weights: shapes, and no numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operation; new tensors are made on the meta device by `torch.device("meta")`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor) and not value.is_meta:
                with torch._C.DisableTorchFunctionSubclass():
                    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return torch.device("meta") if isinstance(value, torch.device) else value

        return func(*tree_map(move, args), **tree_map(move, kwargs or {}))


class Lengths:
    """The function as a mapping from one whole number to another. Shapes only: values are never computed."""

    def __init__(self, fn: Callable[..., Any], over: str, sizes: Mapping[str, int], axis: int | None) -> None:
        function = type(fn).forward if isinstance(fn, nn.Module) else fn
        self.fn, self.over, self.sizes, self.axis = fn, over, sizes, axis
        self.name = type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__qualname__", type(fn).__name__)
        hints = annotations.hints_of(inspect.unwrap(function))
        self.inputs = {
            name: leaf
            for name, hint in hints.items()
            if name != "return" and type(None) not in annotations.typing.get_args(hint)
            for leaf in list(annotations.leaves(hint))[:1]
        }
        words = [word.name for leaf in self.inputs.values() for word in annotations.words(leaf.dim_str)]
        self.annotated = over in words
        self.known: dict[int, tuple[int, ...]] = {}

    def arguments(self, n: int) -> dict[str, Any]:
        """Tensors as the annotations ask for them; an axis without a known size has size 1."""
        sizes = {**self.sizes, self.over: n}
        found = {}
        for name, leaf in self.inputs.items():
            shape = []
            for word in annotations.words(leaf.dim_str):
                if word.fixed is not None:
                    shape.append(word.fixed)
                elif not word.many:
                    shape.append(evaluate(word.formula, sizes) if word.formula else sizes.get(word.name, 1))
            whole = not isinstance(torch.empty(0), leaf.dtype[leaf.array_type, "..."])
            found[name] = torch.zeros(shape, dtype=torch.int64 if whole else torch.float32)
        return found

    def shape(self, n: int) -> tuple[int, ...]:
        """The shape that comes out, or a plain number as a shape of one."""
        if n not in self.known:
            with torch.device("meta"), ShapesOnly(), torch.no_grad():
                out = self.fn(**self.arguments(n)) if self.annotated else self.fn(n)
            while isinstance(out, (tuple, list)) and out:
                out = out[0]
            if isinstance(out, bool) or not isinstance(out, (Tensor, int)):
                raise TypeError(f"{self.name} gave {type(out).__name__}; a tensor or a length was expected")
            self.known[n] = tuple(out.shape) if isinstance(out, Tensor) else (out,)
        return self.known[n]

    def __call__(self, n: int) -> int:
        """The length for one n."""
        if self.axis is None:
            raise TypeError("choose_axis first")
        return self.shape(n)[self.axis]

    def least(self) -> tuple[int, str]:
        """The shortest length that is taken, and what is said to the one before it."""
        bad, good, refusal = 0, 1, ""
        while True:
            try:
                self.shape(good)
                break
            except REFUSALS as error:
                if good >= LONGEST:
                    raise ValueError(f"{self.name} takes no {self.over} up to {LONGEST}: {error}") from error
                bad, good, refusal = good, good * 2, str(error)
        while good - bad > 1:
            middle = (bad + good) // 2
            try:
                self.shape(middle)
                good = middle
            except REFUSALS as error:
                bad, refusal = middle, str(error)
        return good, refusal.splitlines()[0] if refusal else ""

    def longest(self, good: int) -> int | None:
        """The longest length that is taken, or None if even a very long one is."""
        bad = FAR[-1]
        try:
            self.shape(bad)
            return None
        except REFUSALS:
            while bad - good > 1:
                middle = (bad + good) // 2
                try:
                    self.shape(middle)
                    good = middle
                except REFUSALS:
                    bad = middle
        return good

    def choose_axis(self, least: int) -> None:
        """The one axis of the result that depends on the length."""
        if self.axis is not None:
            return
        further = least
        while further < LONGEST:
            further = 2 * further + 1
            one, other = self.shape(least), self.shape(further)
            axes = [place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
            if len(axes) > 1:
                raise ValueError(f"{self.name}: axes {axes} of the result depend on {self.over}; say which with axis=")
            if axes:
                self.axis = axes[0]
                return
        raise ValueError(f"{self.name}: {self.over} has no effect on the shape {self.shape(least)}")

    def next_jump(self, n: int, guess: int) -> int | None:
        """The smallest length after n that gives another result, for a result that never falls as n grows."""
        now, step = self(n), max(1, guess)
        low, high = n, n + step
        if guess and self(high - 1) == now:
            low = high - 1
        while self(high) == now:
            low, step = high, step * 2
            high = low + step
            if high > LONGEST:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle) == now else (low, middle)
        return high

    def jumps(self, start: int) -> Iterator[tuple[int, int, int]]:
        """(length, result before, result after) for each jump."""
        n, gap = start, 0
        while True:
            place = self.next_jump(n, gap)
            if place is None:
                return
            yield place, self(n), self(place)
            n, gap = place, place - n


def formula_of(lengths: Lengths, start: int, skip: int) -> tuple[Floor, list[int]]:
    """⌊(a·n + b) / c⌋ from the jumps of two whole periods; `skip` jumps at the beginning belong to a cap."""
    jumps: list[tuple[int, int, int]] = []
    for number, jump in enumerate(lengths.jumps(start)):
        if number < skip:
            continue
        jumps.append(jump)
        steps = [(b[0] - a[0], b[2] - a[2]) for a, b in itertools.pairwise(jumps)]
        half = len(steps) // 2
        if half and steps[:half] == steps[half : 2 * half]:
            c, a = (sum(step[place] for step in steps[:half]) for place in (0, 1))
            b = max(after * c - a * place for place, _, after in jumps)
            form = Floor(a, b, c).inner()
            fits = all((form.at(p), form.at(p - 1)) == (after, before) for p, before, after in jumps[skip > 0 :])
            if fits and form.at(jumps[0][0]) == jumps[0][2] and lengths(jumps[-1][0] + 7 * c) == jumps[-1][2] + 7 * a:
                return form, [place for place, _, _ in jumps]
        if len(jumps) > 2 * MOST_JUMPS:
            break
    raise ValueError(
        f"{lengths.name}: no formula ⌊(a·{lengths.over} + b) / c⌋ from {start} on; it jumps at "
        f"{', '.join(str(place) for place, _, _ in jumps[:8]) or 'no place'}. Are there caps (min, max)? Name them in "
        "`want`."
    )


def first_at(form: Floor, value: int) -> int:
    """The smallest n for which ⌊(a·n + b) / c⌋ ≥ value."""
    return -((form.b - value * form.c) // form.a)


def sweep(
    fn: Callable[..., Any],
    over: str,
    want: str | None = None,
    given: Mapping[str, int] | None = None,
    axis: int | None = None,
    **sizes: int,
) -> Sweep:
    """Prove a length for every `over`: find its formula, and raise SweepMismatch unless it is `want`.

    `fn` is a module or function whose annotations name the axis `over`: its input is built from them, `sizes` gives the
    other axes (1 where none is given). Without such an annotation it is called with the length alone. It gives a tensor
    or a length; `axis` says which axis counts if more than one depends on `over`. The result must not fall as `over`
    grows. `given` are sizes of other names in `want`; the caps (`min`, `max`) around `want` are checked on both sides.

    Raises SpecError if `want` cannot be written as ⌊(a·n + b) / c⌋ with caps, ValueError if no length works, none has
    an effect, or the length is not of this kind.
    """
    due = floor_form(want, over, {**(given or {}), **sizes}) if want is not None else None
    if due is not None and due.a <= 0:
        raise SpecError(f"{want!r} does not grow with {over}")
    lengths = Lengths(fn, over, sizes, axis)
    least, refusal = lengths.least()
    lengths.choose_axis(least)
    capped = due is not None and due.least is not None
    try:
        form, jumps = formula_of(lengths, least, skip=int(capped))
    except ValueError:
        if due is not None:
            compare(lengths, due, str(want), range(least, least + 64))
        raise
    longest = lengths.longest(jumps[-1])
    far = [jumps[-1] + more for more in FAR]
    if due is None:
        compare(lengths, form, form.text(over), [n for n in far if longest is None or n <= longest])
        return Sweep(lengths.name, over, form, least, refusal, tuple(jumps[:3]), len(lengths.known), longest)
    inner = due.inner()
    edges = [first_at(inner, cap + side) for cap in (due.least, due.most) if cap is not None for side in (0, 1)]
    places = [edge + side for edge in edges for side in (-2, -1, 0, 1, 2)]
    places += [*range(least, least + 8), *(jump + side for jump in jumps for side in (-1, 0)), *far]
    if form != inner:
        # the first length at which the two formulas part; arithmetic only
        ends = range(least, least + 4 * max(form.c, inner.c) + 1000)
        places += [n for n in ends if form._replace(least=due.least, most=due.most).at(n) != due.at(n)][:1]
    taken = sorted({n for n in places if n >= least and (longest is None or n <= longest)})
    compare(lengths, due, str(want), taken, form)
    if form != inner:
        raise SweepMismatch(f"{lengths.name}: {want!r} expected for every {over}, {form.text(over)} found")
    shown = form._replace(least=due.least, most=due.most)
    return Sweep(lengths.name, over, shown, least, refusal, tuple(jumps[:3]), len(lengths.known), longest)


def compare(lengths: Lengths, due: Floor, want: str, places: Any, found: Floor | None = None) -> None:
    """Raise SweepMismatch at the first length that is not as expected."""
    for n in places:
        if lengths(n) != due.at(n):
            instead = f" It looks like {found.text(lengths.over)}." if found is not None else ""
            raise SweepMismatch(
                f"{lengths.name}: {lengths.over} = {n} gives {lengths(n)}, but {want} = {due.at(n)}.{instead}"
            )
