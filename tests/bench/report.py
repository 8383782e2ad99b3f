"""The results as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.cases import FAULTS
from tests.bench.table import CASES, Case

_COLOURS = {"floor": "#9aa0a6", "peer": "#c5221f", "ours": "#1a73e8"}
_SIZES = {
    "growth-clients": "clients of a channel",
    "growth-channels": "channels that have had an event",
    "growth-log": "events in the log",
    "growth-backlog": "events that wait when the worker starts",
}
_INTRO = """# Benchmarks

Both sides on one machine ({machine}, Python {python}), {date}: PostgreSQL with its durable defaults, model storage,
uvicorn with uvloop, the same load client (`tests/bench/load.py`), rounds of the sides in turn (at least {rounds} each). The peer is
django-eventstream 5.3.4 in a virtual environment of its own. Everything shares the machine, so compare within a row.

    make bench            # fills this page; QUICK=1 for a look, without the longest rows; ONLY='send idle' for some rows

Medians, and in brackets the least and the most of the rounds. *Floor* is the same work with nothing around it: what
each one is, is in `tests/bench/cases.py`. A ratio in bold misses what it aims at.

| | unit | floor | peer | this project | of the floor | of the peer | aim |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _cell(side: dict[str, Any] | None) -> str:
    if side is None:
        return "-"
    if "median" not in side:
        return "cannot run, see below"
    text = _number(side["median"])
    if side["least"] < side["most"]:
        text += f" ({_number(side['least'])} … {_number(side['most'])})"
    return text


def _ratio(case: Case, sides: dict[str, Any], other: str, aim: float | None) -> str:
    mine = sides.get("ours", {}).get("median")
    theirs = sides.get(other, {}).get("median")
    if not mine or not theirs:
        return "-"
    ratio = mine / theirs
    text = f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.3f}"
    if aim is not None and (ratio > aim if case.is_low_good else ratio < aim):
        return f"**{text}**"
    return text


def _aim(case: Case) -> str:
    sign = "≤" if case.is_low_good else "≥"
    parts = []
    if case.to_floor is not None:
        parts.append(f"{sign} {case.to_floor:g} of the floor")
    if case.to_peer is not None:
        parts.append(f"{sign} {case.to_peer:g} of the peer")
    return ", ".join(parts) or "-"


def table(results: dict[str, Any]) -> str:
    """Return the rows of the page."""
    lines = []
    for case in CASES:
        sides = results.get(case.name)
        if sides is None:
            continue
        cells = [_cell(sides.get(side)) for side in ("floor", "peer", "ours")]
        ratios = [
            _ratio(case, sides, "floor", case.to_floor),
            _ratio(case, sides, "peer", case.to_peer),
        ]
        lines.append(
            f"| {case.title} | {case.unit} | {' | '.join(cells)} | "
            f"{' | '.join(ratios)} | {_aim(case)} |"
        )
    return "\n".join(lines) + "\n"


def merge(before: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a run of some rows, put into those of a run before it."""
    run = f"{content['date']}, {content['machine']}"
    known = before.get("apart", {})
    return {
        **before,
        "rounds": min(before["rounds"], content["rounds"]),
        "results": {**before["results"], **content["results"]},
        "apart": {**known, **dict.fromkeys(content["results"], run)},
    }


def apart(content: dict[str, Any]) -> str:
    """Return which rows are of another run than the rest."""
    runs: dict[str, list[str]] = {}
    for case in CASES:
        run = content.get("apart", {}).get(case.name)
        if run is not None:
            runs.setdefault(run, []).append(case.title)
    lines = [f"- {run}: {'; '.join(titles)}." for run, titles in sorted(runs.items())]
    if not lines:
        return ""
    intro = "These rows are of another run than the rest:"
    return "\n".join(["", intro, "", *lines, ""])


def absences(results: dict[str, Any]) -> str:
    """Return where the peer takes no part, or stops."""
    lines = ["\n## Where the peer stops\n"]
    for case in CASES:
        sides = results.get(case.name)
        if sides is None:
            continue
        if case.without_peer:
            lines.append(f"- {case.title}: {case.without_peer}.")
        for side in ("peer", "ours"):
            errors = [
                r["error"]
                for r in sides.get(side, {}).get("rounds", [])
                if "error" in r
            ]
            if errors:
                who = "the peer" if side == "peer" else "this project"
                lines.append(f"- {case.title}, {who}: {errors[0]}.")
    return "\n".join(lines) + "\n"


def notes(results: dict[str, Any]) -> str:
    """Return everything else that was measured, row by row."""
    lines = ["\n## What else was measured\n"]
    for case in CASES:
        for name, side in results.get(case.name, {}).items():
            rounds = side["rounds"]
            last = _flat(rounds[-1])
            wrong = {
                fault: sum(r.get(fault) or 0 for r in rounds)
                for fault in ("missing", "twice", "disorder")
                if any(r.get(fault) for r in rounds)
            }
            text = ", ".join(
                f"{k} {round(v, 3) if isinstance(v, float) else v}"
                for k, v in last.items()
            )
            found = ", ".join(f"{count:,} {fault}" for fault, count in wrong.items())
            flag = f" **Wrong, in all rounds: {found}.**" if wrong else ""
            if text or flag:
                lines.append(f"- {case.title}, {name}: {text}.{flag}")
    return "\n".join(lines) + "\n"


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    """Return a round's other figures by what the page calls them; faults only if any."""
    shown: dict[str, Any] = {}
    for name, value in figures.items():
        if name in ("value", "points", "error") or (name in FAULTS and not value):
            continue
        if name == "cpu":
            shown |= {f"CPU seconds of {part}": spent for part, spent in value.items()}
        else:
            shown[name.replace("_", " ")] = value
    return shown


def _tick(value: float, _: object) -> str:
    return f"{value:,.10g}"  # with fewer digits a million is 1e+06


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the sides of each row that has several beside each other."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "eventstream"
    cases = [
        case
        for case in CASES
        if sum("median" in side for side in results.get(case.name, {}).values()) > 1
    ]
    if not cases:
        return
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(8, 0.75 * len(cases) + 0.5), layout="constrained"
    )
    for case, axis in zip(cases, list(axes) if len(cases) > 1 else [axes], strict=True):
        sides = {n: s for n, s in results[case.name].items() if "median" in s}
        names = list(sides)[::-1]
        values = [sides[n]["median"] for n in names]
        spread = [
            [sides[n]["median"] - sides[n]["least"] for n in names],
            [sides[n]["most"] - sides[n]["median"] for n in names],
        ]
        axis.barh(names, values, xerr=spread, color=[_COLOURS[n] for n in names])
        title = f"{case.title}, {case.unit}"
        if case.is_low_good:
            title += " (less is better)"
        axis.set_title(title, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_formatter(_tick)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_growth(results: dict[str, Any], path: Path) -> None:
    """Draw, for each case that has points, its figures by their size: flat is good."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "eventstream"
    cases = [
        case
        for case in CASES
        if results.get(case.name, {})
        .get("ours", {})
        .get("rounds", [{}])[-1]
        .get("points")
    ]
    if not cases:
        return
    figure, axes = plt.subplots(
        len(cases),
        3,
        figsize=(9, 2.1 * len(cases)),
        layout="constrained",
        squeeze=False,
    )
    for case, row in zip(cases, axes, strict=True):
        points = results[case.name]["ours"]["rounds"][-1]["points"]
        sizes = [point.get("size") or point["clients"] for point in points]
        groups = [[], [], []]  # type: list[list[str]]
        for name in points[0]:
            if name.endswith("_ms"):
                groups[0].append(name)
            elif name.endswith("_second"):
                groups[1].append(name)
            elif name.endswith(("_mb", "_stream")):
                groups[2].append(name)
        for axis, names in zip(row, groups, strict=True):
            for name in names:
                values = [point[name] or 0 for point in points]
                axis.plot(sizes, values, marker="o", label=name.replace("_", " "))
            axis.set_xscale("log")
            most = max(point[name] or 0 for name in names for point in points)
            axis.set_ylim(0, 1.3 * most)
            axis.legend(fontsize=6, loc="upper left", ncols=2)
            axis.tick_params(labelsize=7)
            axis.yaxis.set_major_formatter(_tick)
        row[0].set_title(f"by {_SIZES[case.name]}", fontsize=8, loc="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(path: Path, directory: Path, *, is_quick: bool) -> None:
    """Write the page and its plot beside the results; of a quick run, only print."""
    content = json.loads(path.read_text())
    results = content["results"]
    print(table(results))
    if is_quick:
        return
    plot(results, directory / "sides.svg")
    plot_growth(results, directory / "growth.svg")
    page = _INTRO.format(**content) + table(results) + apart(content)
    page += "\n![Sides](sides.svg)\n"
    if (directory / "growth.svg").exists():
        page += "\nHow cost grows, each axis from nothing: flat is good.\n\n![Growth](growth.svg)\n"
    limits = directory / "findings.md"
    page += absences(results)
    page += "\n[What falls short, and why](findings.md)\n" if limits.exists() else ""
    (directory / "README.md").write_text(page + notes(results))
