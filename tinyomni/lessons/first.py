"""What lesson 00 shows before it says how."""

from pathlib import Path

from matplotlib.figure import Figure

from tinyomni.io import load_image
from tinyomni.lessons.show import show_figure


def show_image(path: str | Path, alt: str) -> None:
    """Display an image file as the model gets it."""
    image = load_image(path)
    figure = Figure(figsize=(2.6, 2.6), layout="none")  # type: ignore[arg-type]  # missing in the stubs
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(image.permute(1, 2, 0).numpy())  # matplotlib wants the channels last
    ax.axis("off")
    show_figure(figure, alt)
