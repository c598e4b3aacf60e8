"""Figures as the lessons show them: in the course's style, sharp, with a description, with sliders and with sounds.

A stored lesson holds the figure alone, so that it reads on any page; in a running notebook sliders appear below it.
"""

import base64
import html
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from tinyomni.config import SAMPLE_RATE

STYLE = Path(__file__).with_name("course.mplstyle")
SHARPNESS = 1.6  # pixels for each pixel of the page
Drawing = tuple[Figure, str] | tuple[Figure, str, dict[str, torch.Tensor]]  # with its description, and with sounds


def apply_style() -> None:
    """The course's style, for every figure from here on."""
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)


def use_one_thread() -> None:
    """One thread: the same sums on every machine, and no thread waits for a core that another process holds."""
    torch.set_num_threads(1)


def bundle(figure: Figure, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The figure as Jupyter displays it, and the description that goes with it."""
    for ax in figure.axes:
        if ax.images:
            ax.grid(False)
    laid_out = figure.get_layout_engine() is not None  # a diagram fills its sheet, a plot is cut to what it holds
    cut: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12} if laid_out else {}
    figure.savefig(drawn := io.BytesIO(), dpi=100 * SHARPNESS, format="png", **cut)
    # 256 colours take a quarter of the bytes; an octree keeps small areas of a rare colour, a median cut greys them
    picture = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(stored := io.BytesIO(), "PNG", optimize=True)
    width, png = round(picture.width / SHARPNESS), base64.b64encode(stored.getvalue()).decode()
    if is_live():  # JupyterLab drops the description of an image/png, and a screen reader would find nothing
        tag = f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{png}">'
        return {"text/html": tag, "text/plain": alt}, {}
    return {"image/png": png, "text/plain": alt}, {"image/png": {"alt": alt, "width": width}}


def close(figure: Figure) -> None:
    """Forget a figure of pyplot, which the notebook would show a second time."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)


def show_figure(figure: Figure, alt: str, title: str = "") -> None:
    """Display a figure with its description, and close it. `title`: the finding, above all panels of a figure."""
    from IPython.display import display

    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    data, metadata = bundle(figure, alt)
    display(data, raw=True, metadata=metadata)
    close(figure)


def is_live() -> bool:
    """Is this a notebook that somebody has open, in JupyterLab, Notebook or VS Code, and not a run that stores it?"""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)


def players(sounds: dict[str, torch.Tensor], play: bool = False) -> str:
    """A line with a player for each sound, by its label; with `play`, the first one starts by itself."""
    from IPython.display import Audio

    lines: list[str] = []
    for label, wave in sounds.items():
        source = Audio(wave.detach().numpy(), rate=SAMPLE_RATE).src_attr()
        start = " autoplay" if play and not lines else ""
        lines.append(f'<div>{html.escape(label)}<br><audio controls{start} src="{source}"></audio></div>')
    return "".join(lines)


def drawn(
    draw: Callable[..., Drawing], values: dict[str, Any], play: bool = False
) -> tuple[dict[str, str], dict[str, Any], str]:
    """What Jupyter displays for these values: the figure with its metadata, and the players below it."""
    figure, alt, *sounds = draw(**values)
    data, metadata = bundle(figure, alt)
    close(figure)
    return data, metadata, players(sounds[0], play) if sounds else ""


def explore(draw: Callable[..., Drawing], **choices: Any) -> None:
    """Show what `draw` draws for the first choices; in a live notebook, with a slider or a menu for each.

        explore(draw, angle=(0.5, 0, 3.2, 0.1), layer=[1, 2, 3, 4])

    A tuple is (start, least, most, step); a list has the choices of a menu, or of a slider if all are ints, and begins
    with the first; a text is what a field holds at first, in which the reader writes another. `draw` returns the figure
    and its description, and may return sounds as well, by their labels; the first one plays when something is chosen.
    What is shown for the first values is what a stored lesson shows.
    """
    from IPython.display import display

    first = {name: choice if isinstance(choice, str) else choice[0] for name, choice in choices.items()}
    data, metadata, below = drawn(draw, first)
    if not is_live():
        display(data, raw=True, metadata=metadata)
        if below:
            display({"text/html": below, "text/plain": "players of these sounds"}, raw=True)
        return
    data["text/html"] += below
    handle = display(data, raw=True, metadata=metadata, display_id=True)
    display(_controls(draw, handle, choices))


def with_own_globals(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` as it works now: a later cell that uses one of its names for something else does not reach it."""
    if not isinstance(draw, FunctionType):
        return draw
    shared, own = draw.__globals__, dict(draw.__globals__)

    def copied(function: FunctionType) -> FunctionType:
        copy = FunctionType(function.__code__, own, function.__name__, function.__defaults__, function.__closure__)
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    for name, value in shared.items():
        if isinstance(value, FunctionType) and value.__globals__ is shared:
            own[name] = copied(value)
    return copied(draw)


def _controls(draw: Callable[..., Drawing], handle: Any, choices: dict[str, Any]) -> Any:
    """A box with a control for each choice. Moving one draws the figure again, in its place; errors appear below it."""
    import ipywidgets

    draw = with_own_globals(draw)
    controls = {name: _control(name, choice) for name, choice in choices.items()}
    errors = ipywidgets.Output()

    def redraw(_: Any) -> None:
        errors.clear_output()
        with errors:
            values = {name: _value(control) for name, control in controls.items()}
            try:
                data, metadata, below = drawn(draw, values, play=True)
            except (OSError, ValueError) as error:  # a name that is no file, a text that is too long
                print(f"✘ {error}")
                return
            if below:
                data["text/html"] = data.get("text/html", "") + below
            handle.update(data, raw=True, metadata=metadata)

    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox([*controls.values(), errors])


def _value(control: Any) -> Any:
    """What a control is set to; a slider counts in steps, which makes 1.4000000000000001 of 1.4."""
    return round(control.value, 9) if isinstance(control.value, float) else control.value


def _control(name: str, choice: Any) -> Any:
    """A menu for a list, a slider for a tuple, a field for a text."""
    import ipywidgets

    label = {"description": name.replace("_", " "), "style": {"description_width": "120px"}}
    wide = ipywidgets.Layout(width="520px")
    if isinstance(choice, str):
        return ipywidgets.Text(value=choice, continuous_update=False, layout=wide, **label)
    if isinstance(choice, list):
        if len(choice) > 1 and all(isinstance(each, int) for each in choice):
            return ipywidgets.SelectionSlider(options=sorted(choice), value=choice[0], layout=wide, **label)
        return ipywidgets.Dropdown(options=choice, value=choice[0], layout=wide, **label)
    start, least, most, step = choice
    kind = ipywidgets.IntSlider if all(isinstance(each, int) for each in choice) else ipywidgets.FloatSlider
    return kind(value=start, min=least, max=most, step=step, continuous_update=False, layout=wide, **label)
