"""Numbers as text: digits, errors."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.{digits}g}"


def amount(value: float | None) -> str:
    """A count, a time or a rate for people."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def with_error(value: float | None, error: float | None) -> str:
    """Value and error with as many digits as the error's two allow; powers of ten are taken out of tiny ones.

    Example:
        >>> with_error(0.12345, 0.0123)
        '0.123 ± 0.012'
    """
    if value is None or error is None or error == 0 or not math.isfinite(error):
        return number(value)
    places = 1 - math.floor(math.log10(error))
    power = math.floor(math.log10(max(abs(value), error)))
    if places <= 6 or power == 0:  # nothing can be taken out of 3 and an error of rounding
        places = min(max(0, places), 15)
        return f"{value:.{places}f} ± {error:.{places}f}"
    scaled = with_error(value * 10.0**-power, error * 10.0**-power)
    return f"({scaled})e{power}"


def in_brackets(value: float | None, error: float | None) -> str:
    """Value and error as papers have it, that of the last digits in brackets.

    Example:
        >>> in_brackets(0.12345, 0.0123), in_brackets(12.34, 1.5)
        ('0.123(12)', '12.3(1.5)')
    """
    text = with_error(value, error)
    mantissa, sign, rest = text.partition(" ± ")
    if not sign:
        return text
    spread, _, power = rest.partition(")")
    # An error of 1 or more keeps its point: 12.3(15) could be one of 15.
    shown = spread if float(spread) >= 1 else spread.replace(".", "").lstrip("0") or "0"
    return f"{mantissa.lstrip('(')}({shown}){power}"


def percent(value: float | None, error: float | None) -> str:
    """A signed fraction in per cent with its error."""
    if value is None:
        return "-"
    digits = 2 if abs(value) < 0.01 and (error or 0) < 0.001 else 1
    return f"{100 * value:+.{digits}f}" + ("" if error is None else f" ± {100 * error:.{digits}f}") + " %"
