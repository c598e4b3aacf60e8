"""Figures as the lessons show them: in the course's style, sharp, with a description, and with sliders.

A stored lesson holds the figure alone, so that it reads on any page; in a running notebook sliders appear below it.
"""

import base64
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("course.mplstyle")
SHARPNESS = 1.6  # pixels for each pixel of the page


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
    figure.savefig(file := io.BytesIO(), dpi=100 * SHARPNESS, format="png", metadata={"Software": None}, **cut)
    width = round(int.from_bytes(file.getvalue()[16:20], "big") / SHARPNESS)  # where a PNG holds its width
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": alt}
    return data, {"image/png": {"alt": alt, "width": width}}


def close(figure: Figure) -> None:
    """Forget a figure of pyplot, which the notebook would show a second time."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)


def show_figure(figure: Figure, alt: str) -> None:
    """Display a figure with its description, and close it."""
    from IPython.display import display

    data, metadata = bundle(figure, alt)
    display(data, raw=True, metadata=metadata)
    close(figure)


def is_live() -> bool:
    """Is this a notebook that somebody has open, in JupyterLab, Notebook or VS Code, and not a run that stores it?"""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)


def drawn(draw: Callable[..., tuple[Figure, str]], values: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """What Jupyter displays for these values."""
    figure, alt = draw(**values)
    shown = bundle(figure, alt)
    close(figure)
    return shown


def explore(draw: Callable[..., tuple[Figure, str]], **choices: Any) -> None:
    """Show what `draw` draws for the first choices; in a live notebook, with a slider or a menu for each.

        explore(draw, angle=(0.5, 0, 3.2, 0.1), layer=[1, 2, 3, 4])

    A tuple is (start, least, most, step), a list has the choices of a menu. `draw` returns the figure and its
    description. The picture for the first values is what a stored lesson shows.
    """
    from IPython.display import display

    first = {name: choice[0] for name, choice in choices.items()}
    data, metadata = drawn(draw, first)
    if not is_live():
        display(data, raw=True, metadata=metadata)
        return
    handle = display(data, raw=True, metadata=metadata, display_id=True)
    display(_controls(draw, handle, choices))


def _controls(draw: Callable[..., tuple[Figure, str]], handle: Any, choices: dict[str, Any]) -> Any:
    """A box with a control for each choice. Moving one draws the figure again, in its place."""
    import ipywidgets

    controls = {name: _control(name, choice) for name, choice in choices.items()}

    def redraw(_: Any) -> None:
        data, metadata = drawn(draw, {name: control.value for name, control in controls.items()})
        handle.update(data, raw=True, metadata=metadata)

    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox(list(controls.values()))


def _control(name: str, choice: Any) -> Any:
    """A menu for a list, a slider for a tuple."""
    import ipywidgets

    label = {"description": name.replace("_", " "), "style": {"description_width": "120px"}}
    wide = ipywidgets.Layout(width="520px")
    if isinstance(choice, list):
        if len(choice) > 1 and all(isinstance(each, int) for each in choice):
            return ipywidgets.SelectionSlider(options=choice, value=choice[0], layout=wide, **label)
        return ipywidgets.Dropdown(options=choice, value=choice[0], layout=wide, **label)
    start, least, most, step = choice
    kind = ipywidgets.IntSlider if all(isinstance(each, int) for each in choice) else ipywidgets.FloatSlider
    return kind(value=start, min=least, max=most, step=step, continuous_update=False, layout=wide, **label)
