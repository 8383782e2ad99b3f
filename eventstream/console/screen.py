"""Output: rich on a terminal, plain columns in a pipe. Never JSON with colours."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from eventstream.status import Level

LEVEL_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
LEVEL_WORDS = {Level.OK: "OK", Level.WARNING: "WARNING", Level.ERROR: "ERROR"}

Row = Sequence[object]

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # without tab and line feed


class Output(Protocol):
    """What Django gives a command as stdout."""

    def write(self, text: str) -> Any: ...
    def isatty(self) -> bool: ...
    def flush(self) -> None: ...


class Screen:
    """Where a command writes. Plain text, one fact a line, without padding to the right."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def line(self, text: str = "", level: Level | None = None) -> None:
        """Write one line; a level colours it."""
        self._out.write(_visible(text))

    def flush(self) -> None:
        """Have whoever reads a pipe see it now."""
        self._out.flush()

    def finding(self, level: Level, subject: str, text: str, hint: str) -> None:
        """Write what was found, and below it what to do."""
        self._out.write(_visible(f"{LEVEL_WORDS[level]}: {subject}: {text}"))
        if hint:
            self._out.write(f"    {hint}")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Row],
        *,
        levels: Sequence[Level | None] = (),
    ) -> None:
        """Write rows below their headings. Numbers stand to the right."""
        cells = [[_text(cell) for cell in row] for row in rows]
        widths = [
            max(len(line[index]) for line in [list(columns), *cells])
            for index in range(len(columns))
        ]
        right = [_is_numeric(rows, index) for index in range(len(columns))]
        for line in [list(columns), *cells]:
            padded = [
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(line, widths, right, strict=True)
            ]
            self._out.write("  ".join(padded).rstrip())

    @contextlib.contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function that is told how much more is done; a bar on a terminal."""
        yield lambda count: None


class TerminalScreen(Screen):
    """The same with colours and boxes."""

    def __init__(self, out: Output) -> None:
        super().__init__(out)
        from rich.console import Console  # noqa: PLC0415  optional

        file: Any = getattr(out, "_out", out)  # Django wraps it, and adds line ends
        self._console = Console(file=file, highlight=False)

    def line(self, text: str = "", level: Level | None = None) -> None:
        text = _visible(text)
        self._console.print(text, style=_style(level), markup=False, soft_wrap=True)

    def finding(self, level: Level, subject: str, text: str, hint: str) -> None:
        from rich.padding import Padding  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        head = Text()
        head.append(f" {LEVEL_WORDS[level]} ", style=f"reverse {LEVEL_STYLES[level]}")
        head.append(f" {subject}", style="bold")
        head.append(f"  {_visible(text)}")
        self._console.print(head)
        if hint:
            # Commands are to be copied: never broken in two.
            body = Text(f"→ {hint}", style="cyan", no_wrap=False)
            self._console.print(Padding(body, (0, 0, 0, 4)), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Row],
        *,
        levels: Sequence[Level | None] = (),
    ) -> None:
        from rich import box  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for index, name in enumerate(columns):
            is_right = _is_numeric(rows, index)
            table.add_column(
                name, justify="right" if is_right else "left", overflow="fold"
            )
        for index, row in enumerate(rows):
            level = levels[index] if levels else None
            cells = [Text(_text(cell), style=_style(level)) for cell in row]
            table.add_row(*cells)
        self._console.print(table)

    @contextlib.contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)


def make_screen(out: Output, *, no_color: bool = False) -> Screen:
    """Return a screen for a terminal if it is one and rich is installed, else plain."""
    is_wanted = out.isatty() and not no_color and not os.environ.get("NO_COLOR")
    if is_wanted and importlib.util.find_spec("rich") is not None:
        return TerminalScreen(out)
    return Screen(out)


def _style(level: Level | None) -> str:
    return "" if level in (None, Level.OK) else LEVEL_STYLES[level]


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return _visible(str(cell))


def _visible(text: str) -> str:
    """Return the text with control characters written as JSON does: a terminal obeys them.

    What is shown may come from anybody, such as events' data and the answers of targets.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_numeric(rows: Sequence[Row], index: int) -> bool:
    cells = [row[index] for row in rows if row[index] is not None]
    return bool(cells) and all(isinstance(cell, int | float) for cell in cells)
