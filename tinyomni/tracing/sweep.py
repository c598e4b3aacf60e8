"""All lengths, not one: is this length that formula, and for which lengths has that been shown?

Three answers, in this order:

- a counterexample, as soon as one length gives another result;
- *proven*, where symbolic runs cover every length and their formulas equal the expected one (`derive`, `piecewise`);
- *checked*: all lengths of a stated range were run one by one, and some far ones. Nothing is claimed for the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyomni.tracing import fit
from tinyomni.tracing import lengths as limits
from tinyomni.tracing.derive import Derivation
from tinyomni.tracing.floors import Form, Formula, form_of
from tinyomni.tracing.formula import MAX_VALUE, SpecError, compiled, evaluate, names_in, unknown
from tinyomni.tracing.lengths import Endless, Lengths
from tinyomni.tracing.piecewise import Domain, Finding, Undecided, cases, domain, pieces, piecewise

WINDOW = 16  # lengths that are run one by one where a proof holds
FAR = sorted({*(2**k + side for k in range(13, 25) for side in (-1, 0, 1)), 10_007, 100_003, 1_000_003})
FAR_PROVEN = [8191, 65_536, 1_000_003, 2**24 + 1]
EDGES = 24  # far places at which the expected formula turns (caps), with their neighbours
FITTED = 2048  # lengths of the symbolic runs in which a formula is looked for
SHOWN = 4  # counterexamples in a message


class SweepMismatch(AssertionError):
    """The lengths are not what the formula says."""


@dataclass(frozen=True)
class Sweep:
    """A formula, the lengths for which it was shown, and how."""

    name: str
    over: str
    form: Form
    least: int  # the shortest length that the function takes
    most: int | None  # the longest one, if there is one
    step: int  # 1, or: only every step-th length is taken
    proven: bool
    reason: str  # what the proof rests on, or why there is none
    upto: int  # all lengths from `least` to here were run
    far: tuple[int, ...]  # the longer ones that were run
    refusals: Mapping[str, str] = field(default_factory=dict)  # "n < 3" → what the function says
    real: bool = False  # the shape depends on values: zeros were given
    unseen: tuple[str, ...] = ()  # operations with indices whose values are not known

    def __str__(self) -> str:
        formula, steps = self.form.text(self.over), f" in steps of {self.step}" if self.step > 1 else ""
        end = f"{self.over} in {self.least:,}…{self.most:,}" if self.most else f"{self.over} ≥ {self.least:,}"
        ran = f"{self.least:,}…{self.upto:,}{steps}"
        far = f"{len(self.far)} more up to {self.far[-1]:,}" if self.far else ""
        if self.proven:
            text = [f"{self.name}: {formula} for every {end}{steps}", f"  proven: {self.reason}"]
            text.append(f"  run as well: all of {ran}" + (f", and {far}" if far else ""))
        else:
            text = [f"{self.name}: {formula} for all {self.over} in {ran}, checked one by one"]
            text += [f"  as expected, too: {far}"] if far else []
            text.append(f"  not proven beyond that: {self.reason}")
        if self.real:
            text.append("  the shape depends on values; it was computed for zeros")
        if self.unseen:
            text.append(f"  values of indices were not looked at: {', '.join(self.unseen)}")
        return "\n".join([*text, *(f"  {where}: {said}" for where, said in self.refusals.items())])


def sweep(
    fn: Callable[..., Any],
    over: str,
    want: str | None = None,
    given: Mapping[str, int] | None = None,
    axis: int | None = None,
    upto: int = 4096,
    **sizes: int,
) -> Sweep:
    """Compare a length with a formula for every `over`; without `want`, find the formula.

    `fn` is a module or function whose annotations name the axis `over`: its input is built from them, `sizes` gives the
    other axes (1 where none is given). Without annotated inputs it is called with the length alone. It gives a tensor
    or a length; `axis` says which axis counts if more than one depends on `over`. `given` are sizes of other names in
    `want`, a formula of `+ - * // % min max`. Where there is no proof, all lengths up to `upto` are run.

    Raises SweepMismatch with a counterexample; SpecError for a formula or an axis that cannot be read; ValueError if no
    length is taken, none has an effect, a call does not end, or no formula was found.
    """
    if upto < 1:
        raise ValueError(f"upto must be 1 or more, got {upto}")
    lengths, known = Lengths(fn, over, sizes, axis), {**(given or {}), **sizes}
    for name in sorted(names_in(want) - {over, *known}) if want is not None else ():
        raise SpecError(unknown(name, {over, *known}, f" in {want!r}"))
    with lengths.limit:
        return _Search(lengths, want, known, upto).result()


class _Search:
    """One sweep at work."""

    def __init__(self, lengths: Lengths, want: str | None, known: Mapping[str, int], upto: int) -> None:
        self.lengths, self.asked, self.known, self.over = lengths, want, known, lengths.over
        self.want = want or ""  # the formula that is looked at
        self.least = lengths.first(upto)
        self.upto = upto if upto >= self.least else self.least + upto - 1
        self.derivation = Derivation(lengths.symbolic, self.over, lengths.refusal, lengths.caught, lengths.unseen)
        self.domain = Domain(self.least)

    def result(self) -> Sweep:
        """Counterexamples, then a proof, then all lengths one by one."""
        end = self.run(WINDOW)
        if self.want:
            self.compare()
        reason, proven = "", True
        try:
            self.want = self.want or self.derived()
            reason = self.prove()
            self.look_far(FAR_PROVEN)
        except Undecided as error:
            reason, proven = str(error), False
            end = self.run(self.upto)
            if end < self.upto:
                reason += f"; after {limits.MAX_TOTAL:g} s of CPU time no further length was run"
            self.domain = self.taken(end)
            self.want = self.want or self.fitted()
            self.look_far(FAR)
        self.compare()
        self.again()
        return self.sweep(proven, reason, end)

    # ---- what is run

    def run(self, count: int) -> int:
        """The lengths from the shortest on, up to the first `count` or `upto`."""
        end = min(max(self.least + WINDOW - 1, count), self.upto)
        for n in range(self.least, end + 1):
            if n > self.least + WINDOW and self.lengths.limit.over():
                return n - 1
            self.lengths.value(n)
        return end

    def look_far(self, places: list[int]) -> None:
        """Longer ones: powers of two and their neighbours, some primes, and where the formula has caps."""
        end, step, most = max(self.lengths.values), self.domain.step, self.domain.most
        if self.lengths.real:
            return
        edges: set[int] = set()
        try:
            form = piecewise(self.want, self.over, self.known)
            edges = {n for n, _, _ in pieces(form.turns, end + 1, form.period) if n > end + form.period}
        except (Undecided, ZeroDivisionError):  # a formula of another kind: nothing is known of its caps
            pass
        near = {n + side for n in sorted(edges)[:EDGES] for side in (-2, -1, 0, 1)}
        wanted = sorted({n + (self.least - n) % step for n in (*places, *near) if n > end})
        good = end - (end - self.least) % step
        for n in wanted:
            if (most is not None and n > most) or self.lengths.limit.over() or self.beyond(n):
                break
            try:
                value = self.lengths.value(n)
            except Endless:
                break
            if value is None:
                self.domain = Domain(self.least, step, self.last(good, n))
                break
            good = n

    def last(self, good: int, bad: int) -> int:
        """The longest length that is taken, between one that is and one that is not."""
        step = self.domain.step
        while bad - good > step:
            middle = good + (bad - good) // (2 * step) * step
            good, bad = (middle, bad) if self.lengths.value(middle) is not None else (good, middle)
        return good

    def taken(self, end: int) -> Domain:
        """Which lengths up to `end` are taken. A hole among them is a counterexample."""
        values = [n for n in range(self.least, end + 1) if n in self.lengths.values]
        refused = [n for n in range(self.least, end + 1) if n in self.lengths.refusals]
        if not refused:
            return Domain(self.least)
        if refused[0] > values[-1]:
            return Domain(self.least, 1, values[-1])
        step = values[1] - values[0]
        if values == list(range(self.least, end + 1, step)):
            return Domain(self.least, step)
        raise self.hole(refused[0])

    def again(self) -> None:
        """The same length gives the same result."""
        for n in (self.least, max(self.lengths.values)):
            before, now = self.lengths.values[n], self.lengths.shape(n)[self.lengths.axis or 0]
            if before != now:
                raise self.failure(f"{self.over} = {n} gives {before}, but {now} when it is called again")

    # ---- what is shown

    def expected(self, n: int) -> int:
        """The expected length for one n."""
        return evaluate(self.want, {**self.known, self.over: n})

    def beyond(self, n: int) -> bool:
        """Whether the expected length is larger than any that formulas are computed for."""
        try:
            return bool(self.want) and abs(compiled(self.want)({**self.known, self.over: n})) > MAX_VALUE
        except ZeroDivisionError:  # said where it is compared
            return False

    def compare(self) -> None:
        """Raise at the first of all lengths run so far that is not as expected."""
        values = self.lengths.values
        wrong = sorted(n for n, value in values.items() if value != self.expected(n))
        if not wrong:
            return
        first, more = wrong[0], wrong[1:SHOWN]
        text = f"{self.over} = {first} gives {values[first]}, expected {self.want} = {self.expected(first)}."
        if more:
            also = ", ".join(map(str, more)) + (", …" if len(wrong) > SHOWN else "")
            text += f" {len(wrong)} of {len(values)} lengths differ, also {also}."
        raise self.failure(text + self.likely())

    def failure(self, text: str) -> Exception:
        """A mismatch with what was asked for; without that, there is no formula."""
        return (SweepMismatch if self.asked else ValueError)(f"{self.lengths.name}: {text}")

    def hole(self, n: int) -> Exception:
        """A length that is refused although shorter and longer ones are taken."""
        return self.failure(
            f"{self.over} = {n} is refused ({self.lengths.refusal(n)}), although shorter and longer ones are taken"
        )

    def likely(self) -> str:
        """The formula that all lengths have, as far as can be told."""
        wrong, self.want = self.want, ""
        try:
            text = self.derived()
        except Undecided:
            text = fit.formula(self.contiguous(), self.over) or ""
        return f" It looks like {form_of(text, self.over, {}).text(self.over)}." if text and text != wrong else ""

    def derived(self) -> str:
        """The one formula that the symbolic runs have for every length. Raises Undecided if there is none."""
        if self.lengths.real:
            raise Undecided("the shape depends on values")
        start = max(2, self.least)
        self.derivation.compare(None, start)
        values = {n: value for n, value in self.lengths.values.items() if n < start}
        values |= {n: value for n in range(start, start + FITTED) if (value := self.derivation.at(n)) is not None}
        texts = {path.text for path in self.derivation.paths if path.value is not None}
        texts |= {text for text in (fit.formula(values, self.over), fit.formula(self.contiguous(), self.over)) if text}
        forms = {text: form_of(text, self.over, {}) for text in sorted(texts)}
        for text in sorted(forms, key=lambda text: (isinstance(forms[text], Formula), len(forms[text].text("n")))):
            found = self.derivation.compare(piecewise(text, self.over), start)
            if not isinstance(found, Finding) and all(
                evaluate(text, {self.over: n}) == value for n, value in self.lengths.values.items()
            ):
                return text
        raise Undecided("the symbolic runs have no formula in common")

    def prove(self) -> str:
        """What the proof rests on. Raises Undecided, or with a counterexample."""
        if self.lengths.real:
            raise Undecided("the shape depends on values")
        expected = piecewise(self.want, self.over, self.known)
        found = self.derivation.compare(expected, max(2, self.least))
        if isinstance(found, Finding):
            value = self.lengths.value(found.n)
            if value is not None:
                self.compare()
            other = f"gives {value}" if value is not None else "is refused"
            raise Undecided(f"at {self.over} = {found.n} the symbolic run gives {found.value}, an ordinary one {other}")
        shown = domain(found)
        if shown is None:
            refused = min(n for n, _, _, path in found if path.value is None and n > self.least)
            if self.lengths.refusal(refused):
                raise self.hole(refused)
            raise Undecided(f"the symbolic run refuses {self.over} = {refused}, the function does not")
        self.domain = Domain(self.least, shown.step, shown.most)
        if shown.most is not None and not (
            self.lengths.value(shown.most) is not None and self.lengths.refusal(shown.most + shown.step)
        ):
            raise Undecided(f"the symbolic run takes {self.over} up to {shown.most}, the function does not")
        for n in self.lengths.values:
            if (n - self.least) % shown.step or (shown.most is not None and n > shown.most):
                raise Undecided(f"the symbolic run refuses {self.over} = {n}, the function does not")
        for n in self.lengths.refusals:
            if n > self.least and not (n - self.least) % shown.step and (shown.most is None or n <= shown.most):
                raise Undecided(f"the symbolic run takes {self.over} = {n}, the function does not")
        floats = "; its division in floating point is exact below 2**53" if self.derivation.floats else ""
        return f"by the shape rules of its operators, for {cases(found, self.over)}{floats}"

    def contiguous(self) -> dict[int, int]:
        """The lengths run without a gap, from the shortest on."""
        values, found, n = self.lengths.values, {}, self.least
        step = next((k - n for k in sorted(values) if k > n), 1)
        while n in values:
            found[n] = values[n]
            n += step
        return found

    def fitted(self) -> str:
        """A formula found in the lengths that were run."""
        values = self.contiguous()
        text = fit.formula(values, self.over)
        if text is None:
            row = ", ".join(map(str, list(values.values())[:12]))
            raise ValueError(
                f"{self.lengths.name}: no formula found for the lengths {row}, … of {self.over} = {self.least}, …, "
                f"{max(values)}. Give the expected one with want=, or look further with upto="
            )
        return text

    def sweep(self, proven: bool, reason: str, end: int) -> Sweep:
        """The report."""
        where, refusals = self.domain, {}
        if self.least > 1:
            refusals[f"{self.over} < {self.least:,}"] = self.lengths.refusal(self.least - 1)
        if where.step > 1:
            refusals[f"other {self.over}"] = self.lengths.refusal(self.least + 1)
        if where.most is not None:
            refusals[f"{self.over} > {where.most:,}"] = self.lengths.refusal(where.most + where.step)
        upto = end if where.most is None else min(end, where.most)
        upto -= (upto - self.least) % where.step
        return Sweep(
            name=self.lengths.name,
            over=self.over,
            form=form_of(self.want, self.over, self.known),
            least=self.least,
            most=where.most,
            step=where.step,
            proven=proven,
            reason=reason,
            upto=upto,
            far=tuple(sorted(n for n in self.lengths.values if n > upto)),
            refusals=refusals,
            real=self.lengths.real,
            unseen=tuple(self.lengths.unseen),
        )
