"""Which runs are on one scale, so that their numbers may be ranked together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vae_lab.compare.collect import Record
from vae_lab.compare.groups import PICTURES, Section, groups_of, text_of
from vae_lab.compare.metrics import Metric
from vae_lab.config import FREE_KEYS

# Of runs that do not say what their likelihood is (before results.json had `scale`): its class, by loss; else the loss itself
LIKELIHOODS = {"mse": "density", "gaussian": "density"}


@dataclass(frozen=True)
class _Images:
    """What is known of test images and likelihoods from the runs that say it, for those that do not (failed, or of old)."""

    by_data: dict[str, str]  # config of the data: digest of the images
    by_digest: dict[tuple[str, str], str]  # digest of the data set, binarisation: the same
    likelihoods: dict[tuple[str, str], str]  # loss, binarisation: class of likelihood

    @classmethod
    def of(cls, records: Iterable[Record]) -> "_Images":
        known = cls({}, {}, {})
        for record in sorted(records, key=lambda record: not _said(record)):  # what runs say goes before what is derived
            digest, loss, binarize = _decides(record)
            if digest:
                known.by_digest.setdefault((digest, binarize), str(_said(record).get("images") or f"{digest} {binarize}"))
                known.by_data.setdefault(_data_key(record), known.images(record))
            known.likelihoods.setdefault((loss, binarize), str(_said(record).get("likelihood") or _likelihood(loss, binarize)))
        return known

    def images(self, record: Record) -> str:
        """The test images of a run as it says, or as others say of its data set."""
        digest, _, binarize = _decides(record)
        said, data = _said(record).get("images"), _data_key(record)
        return str(said or self.by_digest.get((digest, binarize)) or self.by_data.get(data, data))

    def likelihood(self, record: Record) -> str:
        """Its class of likelihood, in the same way."""
        return str(_said(record).get("likelihood") or self.likelihoods[_decides(record)[1:]])


def _decides(record: Record) -> tuple[str, str, str]:
    """Digest of the data set (empty: unknown), loss and binarisation."""
    config = record.config
    return str(record.results.get("data_digest") or ""), str(config.get("loss.name")), str(config.get("data.binarize"))


def _said(record: Record) -> dict[str, Any]:
    scale = record.results.get("scale")
    return scale if isinstance(scale, dict) else {}


def _likelihood(loss: str, binarize: str) -> str:
    if loss == "bce":
        return "cross_entropy" if binarize == "none" else "binary"
    return LIKELIHOODS.get(loss, loss)


def scale_of(record: Record, metric: Metric, known: _Images) -> dict[str, str]:
    """What decides the scale of a metric; runs that agree in all of it may be ranked together.

    The test images as they are evaluated, and the class of the likelihood: two densities of the same pixels are on one scale,
    whatever their names; a bound on log p(x given y) and one on log p(x) are not.
    """
    config, said = record.config, _said(record)
    scale = {"data": str(config.get("data.name")), "images": known.images(record)}
    if metric.needs_likelihood:
        scale["likelihood"] = known.likelihood(record)
        scale["bound"] = "on p(x given y)" if said.get("conditional") else "on p(x)"
    if metric.needs_objective:
        scale |= {key: str(value) for key, value in sorted(config.items()) if key.startswith("objective.")}
    for key, value in sorted(config.items()):
        if key.startswith("evaluation.") and key.removeprefix("evaluation.") not in PICTURES:
            scale[key] = str(value)
    return scale


def sections(records: Sequence[Record], by: Sequence[str], metric: Metric) -> list[Section]:
    """Comparable runs together, the largest section first, each with its groups in the order of their values."""
    configured = [record for record in records if record.config]
    known = _Images.of(configured)
    found: dict[str, Section] = {}
    for record in configured:
        scale = scale_of(record, metric, known)
        found.setdefault(text_of(scale), Section(scale, [])).records.append(record)
    ordered = sorted(found.values(), key=lambda section: -len(section.records))
    several = [key for key in dict.fromkeys(key for section in ordered for key in section.scale) if _differs(key, ordered)]
    for number, section in enumerate(ordered):
        names = [section.scale[key].replace("_", "-") for key in ("data", "likelihood") if key in section.scale]
        names += [f"{key} {section.scale.get(key, 'none')}" for key in several if key not in ("data", "likelihood")]
        section.title = ", ".join(names)
        section.slug = f"section{number + 1}_" if len(ordered) > 1 else ""
        section.groups = groups_of(section.records, by)
    return ordered


def differing(found: Sequence[Section]) -> dict[str, list[str]]:
    """Which parts of the scale keep sections apart, with their values."""
    keys = dict.fromkeys(key for section in found for key in section.scale)
    return {key: list(dict.fromkeys(section.scale.get(key, "none") for section in found)) for key in keys if _differs(key, found)}


def _differs(key: str, found: Sequence[Section]) -> bool:
    return len({section.scale.get(key) for section in found}) > 1


def _data_key(record: Record) -> str:
    config = {key: value for key, value in record.config.items() if key.startswith("data.")}
    return text_of({key: value for key, value in config.items() if key not in FREE_KEYS})
