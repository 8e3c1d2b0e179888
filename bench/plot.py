"""One picture of the speed table: time per pixel of each system as a multiple of the plain forward's."""

from pathlib import Path

from bench.records import OURS, PLAIN, Results, Row
from bench.systems import VGG

_COLOURS = {"fp32": "#4c78a8", "bf16": "#f58518"}


def bars(results: Results) -> list[tuple[str, str, float]]:
    """Label, precision and ratio (inner time), in the order they are drawn."""
    rows = [r for r in results.rows if (r.section, r.model, r.device) == ("speed", VGG, "cpu") and r.system != PLAIN]
    known = [(row, results.ratio(row, whole=False)) for row in rows]
    return [(_label(row), row.precision, ratio) for row, ratio in known if ratio is not None]


def _label(row: Row) -> str:
    return f"{row.system}, {row.height}²"


def plot(results: Results, path: Path) -> None:
    """Draw horizontal bars, as SVG or PNG by the name of `path`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    mpl.rcParams["svg.hashsalt"] = "fcn-batch"  # the same numbers make the same file
    drawn = bars(results)
    labels = list(dict.fromkeys(label for label, _, _ in drawn))
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for label, precision, ratio in drawn:
        place = labels.index(label) + (0.2 if precision == "bf16" else -0.2)
        axes.barh(place, ratio, height=0.38, color=_COLOURS[precision])
        axes.text(ratio, place, f" {ratio:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), labels)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text().startswith(OURS) else "normal")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("wall time per pixel, without start-up\n(plain forward in the same precision = 1, dashed)")
    axes.set_title(f"{VGG} on {results.machine.get('CPU', 'this machine')}, {results.machine.get('Date', '')}")
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in _COLOURS.items()])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
