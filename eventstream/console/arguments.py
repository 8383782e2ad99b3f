"""Numbers on the command line, within limits: argparse says what is wrong with others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return what makes a whole number of an argument."""
    return _reader(int, low, high, "must be a whole number")


def number(low: float, high: float) -> Callable[[str], float]:
    """Return what makes a number of an argument; NaN is out of any limits."""
    return _reader(float, low, high, "must be a number")


def _reader(
    parse: Callable[[str], _Number], low: _Number, high: _Number, problem: str
) -> Callable[[str], _Number]:
    def read(text: str) -> _Number:
        try:
            value = parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(problem) from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:,} to {high:,}")
        return value

    return read
