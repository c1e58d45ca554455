"""The answer in words: which variant is better, by how much, is it noise, at what cost."""

import math
from collections.abc import Sequence

from vae_lab.compare.analysis import Comparison, Effect
from vae_lab.compare.groups import Group
from vae_lab.compare.metrics import RECONSTRUCTION
from vae_lab.compare.statistics import ALPHA, FEW_SEEDS, Pair
from vae_lab.compare.wording import decimals, interval, number, probability, seconds

NAMED = 4  # groups named in a sentence before the rest is counted


def sentences(found: Comparison) -> list[str]:
    """A paragraph for each comparison, the verdict first."""
    digits, unit = decimals(found), found.metric.unit
    text = [_lead(found, digits)]
    text += _others(found, digits) if found.best else []
    text += _left_out(found)
    unsaid = [group for group in found.compared if (lost := found.losses[group.label].words) and lost not in " ".join(text)]
    if unsaid:
        text.append(f"Runs are lost of {_names([named(found, group) for group in unsaid])} as well.")
    text += [line for effect in found.effects for line in _effect(effect, unit, digits)]
    if found.best:
        text.append(_cost(found, found.best))
    if found.num_seeds == 1 and found.others:
        text.append("With a single common seed nothing can be said about noise.")
    elif found.others and found.num_seeds < FEW_SEEDS:
        text.append(f"{_seeds(found.num_seeds)} are few: only differences well above the seeds' spread can show.")
    if found.metric.name == RECONSTRUCTION and (rateless := [group for group in found.groups if not group.usable("test/kl")]):
        text.append(
            f"{_names([group.label for group in rateless])} {'have' if len(rateless) > 1 else 'has'} no KL term: less nll is "
            "a better reconstruction, not a better generative model."
        )
    return text


def _lead(found: Comparison, digits: int) -> str:
    best = found.best
    if best is None:
        what = f"setting of {_names(found.design.keys)} and seed" if found.design.keys else "seed"
        advice = "; with these in --by their settings stand apart" if found.design.keys else ""
        return (
            f"No verdict on {found.metric.name}: {_names([named(found, group) for group in found.groups])} have no {what} "
            f"in common{advice}. Means over different runs are not compared."
        )
    row, others = found.table.loc[best.label], found.others
    lacking = any(found.losses[group.label].count for group in found.compared) or found.design.keys
    over = _seeds(int(row["n"])) + (" that all of them have" if others and lacking else "")
    if found.design.keys and others:
        over += f", and over the settings of {_names(found.design.keys)} that all of them have"
    what = "has the best mean of" if others else "is the only variant with"
    text = (
        f"{named(found, best)} {what} {found.metric.name}: {number(row['mean'], digits)} {found.metric.unit} "
        f"({interval(row['low'], row['high'], digits)}, {over})."
    )
    return text if others else f"{text} There is no other group to compare it with."


def named(found: Comparison, group: Group) -> str:
    """A group, and what it lost: 'vae (3 of 5 runs failed)'."""
    words = found.losses[group.label].words
    return f"{group.label} ({words})" if words else group.label


def _left_out(found: Comparison) -> list[str]:
    apart = [
        f"{named(found, group)}, {found.design.apart[group.label]} of {len(found.design.cells)} common cells"
        for group in found.groups
        if group.label in found.design.apart
    ]
    text = [f"Not compared, for want of common seeds and settings: {_names(apart, '; ')}."] if apart and found.best else []
    if found.dead:
        text.append(f"Not compared, since no run is left: {_names([named(found, group) for group in found.dead])}.")
    return text


def seeds_of(found: Comparison, group: Group) -> str:
    """'5', '3 of 5', '5, of which 3 are compared': seeds that a group has, of those planned, and those that count here."""
    have = len(group.expected_seeds) - len(group.missing_seeds)
    apart = group.label in found.design.apart
    return group.seeds if apart or found.num_seeds >= have else f"{group.seeds}, {found.num_seeds} compared"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _others(found: Comparison, digits: int) -> list[str]:
    kinds: dict[str, list[tuple[Group, Pair]]] = {}
    for group in found.others:
        pair = found.against_best(group)
        assert pair is not None
        kinds.setdefault(pair.verdict, []).append((group, pair))
    text = [_better(found, kinds["better"], digits)] if "better" in kinds else []
    for kind, members in kinds.items():
        if kind in WHY:
            text.append(f"{WHY[kind].format(least=_least(found))}: {_names([_by(found, *one, digits) for one in members])}.")
    if "lost" in kinds and found.best:
        text.append(
            f"{found.best.label} is not called better than them: {found.losses[found.best.label].words}, and what is gone may "
            "have been worse than what is left."
        )
    return text


WHY = {
    "lost": "Ahead of these beyond the noise of seeds, on the seeds that all have",
    "small": "Ahead by less than the least difference of interest, {least}",
    "images": "Ahead beyond the noise of seeds, but another test set might turn it round",
    "noise": "Not told apart from it by these seeds",
    "unclaimed": "Ahead, as an estimate (this page makes its claims on another metric), of",
    "constant": "Ahead by the same in every seed, so that there is no chance to measure it against",
    "equal": "Equal to it in every seed",
    "untested": "Not tested against it",
}


def _least(found: Comparison) -> str:
    return f"{found.least:.3g} {found.metric.unit}".replace("-", "\N{MINUS SIGN}")


def _better(found: Comparison, members: Sequence[tuple[Group, Pair]], digits: int) -> str:
    gains = sorted(pair.gain for _, pair in members)
    size = number(gains[0], digits) + (f" to {number(gains[-1], digits)}" if len(gains) > 1 else "")
    whom = _names([named(found, group) for group, _ in members])
    if len(members) > NAMED and len(members) == len(found.others):
        whom = f"all {len(members)} others"
    test = "paired t test" if len(found.pairs) == 1 else f"Tukey's test of all {len(found.pairs)} pairs"
    return (
        f"It is better than {whom}, by {size}, beyond the noise of seeds ({test}, p < {ALPHA:g}){_beside(members[0][1], digits)}."
    )


def _beside(pair: Pair, digits: int) -> str:
    """The two errors of a gain, beside each other."""
    if math.isnan(pair.image_error):
        return ""
    finer = max(digits, 2)
    return (
        f"; the standard error of the {'gain' if pair.n else 'difference'} over {pair.b} is {number(pair.error, finer)} from seeds "
        f"and {number(pair.image_error, finer)} from the choice of {pair.images:,} test images"
    )


def _by(found: Comparison, group: Group, pair: Pair, digits: int) -> str:
    """'vae (by 0.31, p = 0.2)', 'vae (1 of 5 runs failed; by 0.31, p = 0.2)'."""
    size = f"by {_gain(pair.gain, digits)}"
    if pair.verdict in ("noise", "unclaimed", "lost"):
        size += f", {probability(pair.p_family)}"
    elif pair.verdict == "images":
        size += f" \N{PLUS-MINUS SIGN} {_gain(pair.image_error, digits)} over {pair.images:,} images, {probability(pair.p_images)}"
    elif pair.verdict == "untested":
        size = f"one common seed; difference {_gain(pair.gain, digits)}"
    if pair.verdict == "equal":
        return named(found, group)
    lost = found.losses[group.label].words
    return f"{group.label} ({f'{lost}; ' if lost else ''}{size})"


def _gain(value: float, digits: int) -> str:
    """A small difference is not written as 0.00."""
    text = number(value, digits)
    return text if value == 0 or math.isnan(value) or float(text.replace(",", "")) else f"{value:.2g}"


def _effect(effect: Effect, unit: str, digits: int) -> list[str]:
    if not effect.pairs or effect.pairs[0].n < 2:
        return []
    first = effect.pairs[0]
    if first.verdict == "equal":
        return []
    size = f"{_gain(first.gain, digits)} {unit}"
    size += " in every seed" if first.verdict == "constant" else f" ({interval(first.low, first.high, digits)})"
    order = ", then ".join(str(name) for name in effect.values.columns) if len(effect.values.columns) > 2 else ""
    return [f"Estimate, {effect.over}: {first.a} is ahead of {first.b} by {size}{f'; the order is {order}' if order else ''}."]


def _cost(found: Comparison, best: Group) -> str:
    text = (
        f"A run of {best.label} trains for {seconds(best.mean('time/train_s'))} and has {best.mean('parameters'):,.0f} parameters"
    )
    near = ("noise", "equal", "small", "images")
    close = [group for group in found.others if (pair := found.against_best(group)) and pair.verdict in near]
    cheaper = [group for group in close if group.mean("parameters") < best.mean("parameters")]
    if cheaper:
        least = min(cheaper, key=lambda group: group.mean("parameters"))
        share = least.mean("parameters") / best.mean("parameters")
        return f"{text}; {least.label}, not told apart from it, has {share:.0%} of its parameters."
    return f"{text}."


def _names(names: Sequence[str], comma: str = ", ") -> str:
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        return f"{comma.join(shown)} and {len(names) - NAMED} more"
    return shown[0] if len(shown) == 1 else f"{comma.join(shown[:-1])} and {shown[-1]}"


def standing(found: Comparison, group: Group) -> tuple[str, str]:
    """How a group stands to the best one, as a class and in words: ('worse', 'worse by 2.67')."""
    if group is found.best:
        if found.losses[group.label].count:
            return "noise", "best of what is left"
        return "best", "best" if found.claims else "best mean"
    pair, digits = found.against_best(group), decimals(found)
    if pair is None:
        return "untested", "not compared"
    by = _gain(pair.gain, digits)
    words = {
        "better": ("worse", f"worse by {by}"),
        "noise": ("noise", f"{by} behind: may be noise"),
        "small": ("noise", f"{by} behind: too small to matter"),
        "images": ("noise", f"{by} behind: may be the test images"),
        "lost": ("noise", f"{by} behind what is left of the best"),
        "unclaimed": ("", f"{by} behind"),
        "constant": ("untested", f"{by} behind in every seed"),
        "equal": ("noise", "equal in every seed"),
    }
    return words.get(pair.verdict, ("untested", f"{by} behind, one seed"))
