"""Metrics as text: OpenMetrics 1.0, whatever content type was asked for, as in the Rust ztunnel.

prometheus-client could write this too. But it sorts labels, adds ``_created`` series, prints families without
samples, and takes over a second for 20,000 series with these labels. Here the label text of a series is made
once and cached, and the page comes in pieces, so that other tasks can run in between.

Sources: https://prometheus.io/docs/specs/om/open_metrics_spec/, docs/protocol/operations.md#metrics-page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from ztunnel.observe.families import CATALOGUE, Family, MetricKind

OPENMETRICS_TYPE = "application/openmetrics-text;charset=utf-8;version=1.0.0"
TEXT_TYPE = "text/plain; charset=utf-8"
_SLICE = 1000
_KEPT = 500_000


def content_type(accept: str | None) -> str:
    """Returns the content type of the response.

    Items are compared literally: a space after a comma counts.
    """
    for item in (accept or "").split(","):
        if item.split(";")[0].lower() == "application/openmetrics-text":
            return OPENMETRICS_TYPE
    return TEXT_TYPE


def content_encoding(accept_encoding: str | None) -> str | None:
    """Returns ``gzip`` or ``deflate``, whichever is preferred, or None (RFC 9110 section 12.5.3).

    br and zstd would need libraries that nothing else needs.
    """
    wanted: dict[str, float] = {}
    for item in (accept_encoding or "").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        wanted[name] = quality
    anything = wanted.get("*", 0.0)
    best = max(("gzip", "deflate"), key=lambda name: wanted.get(name, anything))
    return best if wanted.get(best, anything) > 0 else None


class Exposition:
    """Writes pages. One object is kept for all of them, because it caches label texts."""

    def __init__(self) -> None:
        self._label_texts: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}

    def page(self, totals: Mapping[str, Mapping[tuple[str, ...], float]]) -> Iterator[bytes]:
        """Returns the page in pieces of about 1000 series.

        totals: values by sample name and label values; must not change before the last piece is taken.
            Families come in the order of the catalogue; those without samples are left out.
        """
        if len(self._label_texts) > _KEPT:
            self._label_texts.clear()
        for family in CATALOGUE:
            if any(totals.get(name) for name in family.samples):
                yield _head(family).encode()
                if family.kind is MetricKind.HISTOGRAM:
                    yield self._histogram(family, totals).encode()
                else:
                    yield from self._simple(family, totals[family.samples[0]].items())
        yield b"# EOF\n"

    def _simple(self, family: Family, series: Iterable[tuple[tuple[str, ...], float]]) -> Iterator[bytes]:
        name = family.samples[0]
        everything = iter(series)
        while part := list(islice(everything, _SLICE)):
            lines = [f"{name}{self._labels(family, labels)} {_number(value)}\n" for labels, value in part]
            yield "".join(lines).encode()

    def _histogram(self, family: Family, totals: Mapping[str, Mapping[tuple[str, ...], float]]) -> str:
        sum_name, count_name, bucket_name = family.samples
        counts, buckets = totals.get(count_name, {}), totals.get(bucket_name, {})
        of_series: dict[tuple[str, ...], list[tuple[str, float]]] = {}
        for key, value in buckets.items():
            of_series.setdefault(key[:-1], []).append((key[-1], value))
        lines = []
        for labels, total in totals.get(sum_name, {}).items():
            text = self._labels(family, labels)
            lines.append(f"{sum_name}{text} {float(total)!r}\n")
            lines.append(f"{count_name}{text} {_number(counts.get(labels, 0))}\n")
            inner = text[1:-1] + "," if text else ""
            for le, value in of_series.get(labels, ()):
                lines.append(f'{bucket_name}{{{inner}le="{le}"}} {_number(value)}\n')
        return "".join(lines)

    def _labels(self, family: Family, values: tuple[str, ...]) -> str:
        # families of the same labels share the texts
        key = (family.labels, values)
        found = self._label_texts.get(key)
        if found is None:
            pairs = zip(family.labels, values, strict=False)  # trailing labels may be missing
            inner = ",".join([f'{name}="{_escaped(value)}"' for name, value in pairs])
            found = self._label_texts[key] = f"{{{inner}}}" if inner else ""
        return found


def _head(family: Family) -> str:
    unit = f"# UNIT {family.name} {family.unit}\n" if family.unit else ""
    return f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind.value}\n{unit}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value.encode("utf-8", "backslashreplace").decode() if not value.isprintable() else value


def _number(value: float) -> str:
    whole = int(value)
    return str(whole) if whole == value else repr(float(value))
