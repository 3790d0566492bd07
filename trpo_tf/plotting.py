"""Pictures of learning curves."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """One line: values over environment steps; None where there is no value."""

    label: str
    steps: Sequence[Any]
    values: Sequence[Any]


def draw(panels: dict[str, list[Curve]], path: str | os.PathLike) -> None:
    """Draws a panel per name, one under the other, into a .png, .svg or .pdf file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axis, (name, curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            points = [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if y is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=curve.label, linewidth=1)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("environment steps")
    if any(curve.label for curve in next(iter(panels.values()))):
        axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
