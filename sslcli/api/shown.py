"""How a run looks in a notebook: a plot of its log, and a table."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sslcli.contracts.errors import UserError
from sslcli.logs import shown as printable

#: Values of log lines, each in a panel of its own where it is logged, and the panel's title.
PANELS = {"loss": "loss", "lr": "learning rate", "knn_top1": "kNN top-1 (%)"}
_DPI = 110


def plot_log(lines: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Plots loss, learning rate and kNN accuracy over the steps.

    Args:
        lines: of the log.
        title: above the panels.

    Returns:
        a matplotlib `Figure`; a notebook shows it.

    Raises:
        UserError: matplotlib is not installed, or there is nothing to plot.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
        ticker = importlib.import_module("matplotlib.ticker")
    except ImportError as error:
        raise UserError("plot needs matplotlib: pip install 'sslcli[plots]', or use run.metrics") from error

    class Figure(figures.Figure):  # type: ignore[misc, name-defined]
        """Without pyplot: no window and no global state, so a notebook needs this to show it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=_DPI)
            return buffer.getvalue()

    panels = [name for name in PANELS if any(name in line for line in lines)]
    if not panels:
        raise UserError(f"{title}: nothing is logged yet")
    figure = Figure(figsize=(3.6 * len(panels), 3), layout="constrained")
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        factor = 100 if name.startswith("knn") else 1
        points = [(line["step"], factor * line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="." if len(points) < 50 else None, linewidth=1.2, label="encoder")
        pixels = next((line["knn_top1_pixels"] for line in lines if "knn_top1_pixels" in line), None)
        if name == "knn_top1" and pixels is not None:
            axes.axhline(factor * pixels, color="gray", linestyle="--", linewidth=1, label="raw pixels")
            axes.legend(fontsize=8)
        axes.set_title(PANELS[name], fontsize=9)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    return figure


def table_rows(config: Mapping[str, Any], steps: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns what the table of a run shows, by name; what is not logged is left out."""
    rows = {section: str(config[section]["name"]) for section in ("method", "backbone", "data")} | {"step": steps}
    losses = [line["loss"] for line in lines if "loss" in line]
    if losses:
        rows["loss"] = f"{losses[-1]:.4g}"
    # What was measured before training says nothing of it.
    found = [(line["knn_top1"], line["step"]) for line in lines if "knn_top1" in line and line["step"]]
    if found:
        best, step = max(found, key=lambda each: each[0])
        rows["kNN top-1"] = f"{found[-1][0]:.1%}, best {best:.1%} at step {step:,}"
    return rows
