"""Pictures of what [`evaluate`] measured: accuracy against the tokens spent, and over the steps of a training run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METHODS = {"pass": "any of k (pass@k)", "maj": "majority of k", "weighted": "weighted vote", "bon": "best score"}


def draw_accuracy(reports: dict[str, dict[str, Any]], path: str | Path) -> None:
    """
    Draw the accuracy of each way to choose against the tokens that a question costs, with 95 % intervals.

    Args:
        reports (`dict[str, dict]`):
            Reports of [`evaluate`] by name, each a panel. A searched answer (`selected`) is a point at what it cost.
            Where the rows had no tokens the axis counts samples.
        path (`str` or `Path`):
            Picture to write; its name says the format.

    Raises:
        `ImportError`: Without matplotlib, which the extra `[plots]` brings.
    """
    figure, panels = _panels(len(reports))
    for panel, (name, report) in zip(panels, reports.items(), strict=True):
        tokens = report["tokens"]
        counted = None not in (tokens["thinking"], tokens["answer"])
        each = (tokens["thinking"] + tokens["answer"]) / report["samples"] if counted else 1
        for i, (method, label) in enumerate(_METHODS.items()):
            points = _points(report, method)
            # Side by side, or the bars would hide each other.
            _line(
                panel, [k * each * 1.03 ** (i - 1.5) for k, _ in points], [metric for _, metric in points], label=label
            )
        panel.set_xscale("log")
        panel.set_xticks([k * each for k, _ in _points(report, "pass")], minor=False)
        panel.set_xticks([], minor=True)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        if selected := report["metrics"].get("selected"):
            spent = sum(count or 0 for count in tokens.values()) if counted else report["samples"]
            _line(panel, [spent], [selected], marker="*", markersize=10, color="black", label="the search's own")
        panel.set(xlabel="tokens per question" if counted else "samples per question", title=name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)


def draw_training(reports: dict[int, dict[str, Any]], path: str | Path) -> None:
    """
    Draw accuracy over training steps, one line for each number of samples: what training adds to what sampling adds.

    Where the lines of pass@k come together while pass@1 rises, training made sure of what sampling would have found.

    Args:
        reports (`dict[int, dict]`):
            Reports of [`evaluate`] by training step, each with the same numbers of samples.
        path (`str` or `Path`):
            Picture to write; its name says the format.

    Raises:
        `ImportError`: Without matplotlib, which the extra `[plots]` brings.
    """
    figure, panels = _panels(2)
    steps = sorted(reports)
    for panel, method in zip(panels, ("maj", "pass"), strict=True):
        lines = list(zip(*(_points(reports[step], method) for step in steps), strict=True))
        for i, line in enumerate(lines, 1):
            dark = i / len(lines)
            color = (0.8 - 0.75 * dark, 0.85 - 0.6 * dark, 0.95 - 0.3 * dark)
            _line(panel, steps, [metric for _, metric in line], color=color, label=f"k = {line[0][0]}")
        panel.set(xlabel="training step", title=_METHODS[method])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)


def _panels(number: int) -> tuple["Figure", Sequence["Axes"]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install think-tools[plots]") from error
    figure = Figure(figsize=(4.5 * number + 1.5, 4.5), layout="constrained")
    [panels] = figure.subplots(1, number, sharey=True, squeeze=False)
    panels[0].set(ylabel="share of questions answered right")
    return figure, panels


def _points(report: dict[str, Any], method: str) -> list[tuple[int, dict[str, float]]]:
    """Each `k` with the metric `method@k`."""
    named = [(*name.split("@"), metric) for name, metric in report["metrics"].items() if "@" in name]
    return [(int(k), metric) for kind, k, metric in named if kind == method]


def _line(panel: "Axes", x: Sequence[float], metrics: Sequence[dict[str, float]], **style: Any) -> None:
    values = [metric["value"] for metric in metrics]
    bars = [[abs(metric["value"] - metric[end]) for metric in metrics] for end in ("low", "high")]
    if values:
        panel.errorbar(x, values, bars, **{"marker": "o", "elinewidth": 0.7, "capsize": 2, **style})
    panel.grid(alpha=0.3)
