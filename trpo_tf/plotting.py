"""Pictures of learning curves."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from trpo_tf.errors import UsageError

FORMATS = (".png", ".svg", ".pdf")


class Curve(NamedTuple):
    """One line: values over environment steps; None where there is no value."""

    label: str
    steps: Sequence[Any]
    values: Sequence[Any]


def draw(panels: dict[str, list[Curve]], path: str | os.PathLike) -> None:
    """Draws a panel per name, one under the other, into a .png, .svg or .pdf file.

    Raises:
      UsageError: it is another kind of file, or a metric's values are words.
    """
    _check(panels, path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axis, (name, curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            points = [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if y is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=_plain(curve.label), linewidth=1)
        axis.set_ylabel(_plain(name))
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("environment steps")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        if any(curve.label for curve in next(iter(panels.values()))):
            axes[0].legend(fontsize="small")
        figure.savefig(path, dpi=120)


def _check(panels: dict[str, list[Curve]], path: str | os.PathLike) -> None:
    if os.path.splitext(os.fspath(path))[1].lower() not in FORMATS:
        raise UsageError(f"--output={os.fspath(path)}: one of {', '.join(FORMATS)} is needed")
    for name, curves in panels.items():
        word = next((y for curve in curves for y in curve.values if isinstance(y, str)), None)
        if word is not None:
            raise UsageError(f"--metric={name}: holds words, such as {word}; numbers can be drawn")


def _plain(text: str) -> str:
    """The text as it is, where matplotlib would read what is between dollars as mathematics."""
    return text.replace("$", r"\$")
