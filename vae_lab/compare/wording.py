"""Numbers as text."""

import math

from vae_lab.compare.analysis import Comparison
from vae_lab.compare.statistics import ROUNDING

LARGE = 1e9  # from here on numbers are written with an exponent


def decimals(found: Comparison) -> int:
    """Digits after the point that show two significant digits of the typical spread over seeds."""
    spread = found.table["sd"].dropna()
    spread = spread[spread > found.table["mean"].abs().max() * ROUNDING]
    scale = float(spread.median()) if len(spread) else abs(float(found.table["mean"].iloc[0])) / 1000
    return int(min(6, max(0, 1 - math.floor(math.log10(scale))))) if scale > 0 and math.isfinite(scale) else 3


def number(value: float, digits: int) -> str:
    """'-24.485' with a real minus sign; 'unknown' for NaN."""
    if math.isnan(value):
        return "unknown"
    if abs(value) >= LARGE:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text.replace(",", "")) else text.lstrip("-")


def interval(low: float, high: float, digits: int) -> str:
    """'95 % interval a to b', or why there is none."""
    if math.isnan(low):
        return "no interval"
    return f"95 % interval {number(low, digits)} to {number(high, digits)}"


def probability(p: float) -> str:
    """'p = 0.02', 'p < 0.001'; 'not tested' for NaN."""
    if math.isnan(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def seconds(value: float) -> str:
    """'0.9 s', '12 min', '3.1 h'."""
    if math.isnan(value):
        return "unknown time"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
