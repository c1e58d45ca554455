"""The answer in words: which variant is better, by how much, is it noise, at what cost."""

import math
from collections.abc import Sequence

from vae_lab.compare.analysis import Comparison, Effect
from vae_lab.compare.groups import Group
from vae_lab.compare.metrics import RECONSTRUCTION
from vae_lab.compare.statistics import FEW_SEEDS, Pair

NAMED = 4  # groups named in a sentence before the rest is counted


def decimals(found: Comparison) -> int:
    """Digits after the point that show two significant digits of the typical spread over seeds."""
    spread = found.table["sd"].dropna()
    spread = spread[spread > 0]
    scale = float(spread.median()) if len(spread) else abs(float(found.table["mean"].iloc[0])) / 1000
    return int(min(6, max(0, 1 - math.floor(math.log10(scale))))) if scale > 0 and math.isfinite(scale) else 3


def number(value: float, digits: int) -> str:
    """'-24.485' with a real minus sign; 'unknown' for NaN."""
    if math.isnan(value):
        return "unknown"
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


def sentences(found: Comparison) -> list[str]:
    """A paragraph for each comparison, the verdict first."""
    digits, unit = decimals(found), found.metric.unit
    row = found.table.loc[found.best.label]
    text = [
        f"{found.best.label} has the best {found.metric.name}: {number(row['mean'], digits)} {unit} "
        f"({interval(row['low'], row['high'], digits)}, {_seeds(int(row['n']))})."
    ]
    text += _others(found, digits)
    text += [line for effect in found.effects for line in _effect(effect, unit, digits)]
    text.append(_cost(found))
    if found.num_seeds < 2:
        text.append("With a single seed nothing can be said about noise.")
    elif found.num_seeds < FEW_SEEDS:
        who = (
            _seeds(found.num_seeds) + " are"
            if found.table["n"].nunique() == 1
            else f"Some variants have {found.num_seeds} seeds, which are"
        )
        text.append(f"{who} few: only differences well above the seeds' spread can show.")
    if found.metric.name == RECONSTRUCTION and (rateless := [group for group in found.groups if not group.usable("test/kl")]):
        text.append(
            f"{_names([group.label for group in rateless])} {'have' if len(rateless) > 1 else 'has'} no KL term: less nll is "
            "a better reconstruction, not a better generative model."
        )
    return text


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _others(found: Comparison, digits: int) -> list[str]:
    if len(found.groups) == 1:
        return ["There is no other group to compare it with."]
    clear, unclear, untested = [], [], []
    for group in found.groups[1:]:
        pair = found.against_best(group)
        if pair is None or pair.verdict in ("untested", "constant"):
            untested.append((group, pair))
        elif pair.verdict == "better" and pair.a == found.best.label:
            clear.append((group, pair))
        else:
            unclear.append((group, pair))
    text = []
    tests = f"Holm-corrected for {len(found.pairs)} pairs" if len(found.pairs) > 1 else "one pair"
    if clear:
        gains = sorted(pair.gain for _, pair in clear)
        size = number(gains[0], digits) + (f" to {number(gains[-1], digits)}" if len(gains) > 1 else "")
        whom = "every other group" if len(clear) == len(found.groups) - 1 else _names([group.label for group, _ in clear])
        whom = clear[0][0].label if len(clear) == 1 else whom
        text.append(f"It is better than {whom}, by {size}, beyond the noise of seeds (paired t test, {tests}, p < 0.05).")
    if unclear:
        named = [f"{group.label} (by {number(pair.gain, digits)}, {probability(pair.p_holm)})" for group, pair in unclear]
        text.append(f"Not told apart from it by these seeds: {_names(named)}.")
    if untested:
        named = [f"{group.label}{_why(pair, digits)}" for group, pair in untested]
        text.append(f"Not tested against it: {_names(named)}.")
    return text


def _why(pair: Pair | None, digits: int) -> str:
    if pair is None or pair.n == 0:
        return " (no common seed)"
    if pair.verdict == "constant":
        return f" (the same difference, {number(pair.gain, digits)}, in every seed)"
    return f" (one common seed; difference {number(pair.gain, digits)})"


def _effect(effect: Effect, unit: str, digits: int) -> list[str]:
    if not effect.pairs or effect.pairs[0].n < 2:
        return []
    first = effect.pairs[0]
    size = f"{number(first.gain, digits)} {unit} ({interval(first.low, first.high, digits)}, {probability(first.p_holm)})"
    order = ", then ".join(str(name) for name in effect.values.columns) if len(effect.values.columns) > 2 else ""
    best = f"{first.a} is better than {first.b} by {size}"
    told = {"noise": ": not told apart from noise", "constant": ": the same in every seed"}.get(first.verdict, "")
    return [f"{effect.over[0].upper()}{effect.over[1:]}, {best}{told}{f'; the order is {order}' if order else ''}."]


def _cost(found: Comparison) -> str:
    best = found.best
    text = (
        f"A run of {best.label} trains for {seconds(best.mean('time/train_s'))} and has {best.mean('parameters'):,.0f} parameters"
    )
    close = [group for group in found.groups[1:] if (pair := found.against_best(group)) and pair.verdict in ("noise", "equal")]
    cheaper = [group for group in close if group.mean("parameters") < best.mean("parameters")]
    if cheaper:
        least = min(cheaper, key=lambda group: group.mean("parameters"))
        share = least.mean("parameters") / best.mean("parameters")
        return f"{text}; {least.label}, not told apart from it, has {share:.0%} of its parameters."
    return f"{text}."


def _names(names: Sequence[str]) -> str:
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        return f"{', '.join(shown)} and {len(names) - NAMED} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def standing(found: Comparison, group: Group) -> tuple[str, str]:
    """How a group stands to the best one, as a class and in words: ('worse', 'worse by 2.67')."""
    if group is found.best:
        return "best", "best"
    pair, digits = found.against_best(group), decimals(found)
    if pair is None or pair.n == 0:
        return "untested", "no common seed"
    by = number(pair.gain, digits)
    if pair.b == found.best.label and pair.gain > 0:
        return "noise", f"better on common seeds, by {by}"
    words = {
        "better": ("worse", f"worse by {by}"),
        "noise": ("noise", f"{by} behind: may be noise"),
        "constant": ("untested", f"{by} behind in every seed"),
        "equal": ("noise", "equal in every seed"),
    }
    return words.get(pair.verdict, ("untested", f"{by} behind, one seed"))
