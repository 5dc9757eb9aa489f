"""Pictures of what [`evaluate`] measured: accuracy against the tokens spent, and over the steps of a training run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METHODS = {"pass": "any is right (pass@k)", "maj": "majority", "weighted": "weighted vote", "bon": "best score"}


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
    figure = _figure(4.5 * len(reports) + 1.5, 4.5)
    [panels] = figure.subplots(1, len(reports), sharey=True, squeeze=False)
    for panel, (name, report) in zip(panels, reports.items(), strict=True):
        spent = [report["tokens"][part] for part in ("thinking", "answer")]
        each = None if None in spent else sum(spent) / report["samples"]
        for method, label in _METHODS.items():
            if points := _points(report, method):
                ks, values, lows, highs = zip(*points, strict=True)
                x = [k * (each or 1) for k in ks]
                panel.plot(x, values, marker="o", markersize=4, label=label)
                panel.fill_between(x, lows, highs, alpha=0.12, linewidth=0)
        if selected := report["metrics"].get("selected"):
            x = sum(tokens or 0 for tokens in report["tokens"].values()) if each else report["samples"]
            bars = [[selected["value"] - selected["low"]], [selected["high"] - selected["value"]]]
            panel.errorbar(x, selected["value"], bars, fmt="*", color="black", markersize=10, label="the search's own")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set(xlabel="tokens per question" if each else "samples per question", title=name)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="share of questions answered right")
    panels[-1].legend(loc="best", frameon=False)
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
    figure = _figure(10, 4.5)
    panels = figure.subplots(1, 2, sharey=True)
    steps = sorted(reports)
    for panel, method, title in zip(panels, ("maj", "pass"), ("majority of k", "any of k (pass@k)"), strict=True):
        runs = [_points(reports[step], method) for step in steps]
        for i, line in enumerate(zip(*runs, strict=True)):
            dark = (i + 1) / len(runs[0])
            color = (0.8 - 0.75 * dark, 0.85 - 0.6 * dark, 0.95 - 0.3 * dark)
            panel.plot(steps, [value for _, value, *_ in line], marker="o", color=color, label=f"k = {line[0][0]}")
            panel.fill_between(
                steps, [low for *_, low, _ in line], [high for *_, high in line], color=color, alpha=0.1
            )
        panel.set(xlabel="training step", title=title)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="share of questions answered right")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install think-tools[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _points(report: dict[str, Any], method: str) -> list[tuple[int, float, float, float]]:
    """`k`, value and bounds of `method@k` for each `k`."""
    named = [(name.partition("@"), metric) for name, metric in report["metrics"].items()]
    return [(int(k), *metric.values()) for (kind, _, k), metric in named if kind == method]
