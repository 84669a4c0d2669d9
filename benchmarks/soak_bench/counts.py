"""The gateway's own counts, beside the clients'."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from soak_bench.record import Record, failures, responses


class Scrape:
    """One reading of `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def by(self, metric: str, *labels: str) -> "Counter[tuple[str, ...]]":
        """A metric's values by these labels, over all others; zeros are left out."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self._samples:
            if sample.name == metric and sample.value:
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return found

    def total(self, metric: str) -> float:
        """Over all labels."""
        return sum(sample.value for sample in self._samples if sample.name == metric)


def differences(records: Iterable[Record], before: Scrape, after: Scrape) -> dict[str, tuple[int, int]]:
    """What the clients and the gateway counted otherwise: (clients', gateway's), by what it is.

    Args:
        records: of all requests that were counted between the two scrapes.
    """
    records = list(records)
    pairs = (
        ("laid_requests_total", ("route", "status"), responses(records)),
        ("laid_errors_total", ("reason",), Counter({(key,): n for key, n in failures(records).items()})),
    )
    found = {}
    for metric, labels, clients in pairs:
        gateway = after.by(metric, *labels)
        gateway.subtract(before.by(metric, *labels))
        for key in sorted({*clients, *gateway}):
            if clients[key] != gateway[key]:
                found[f"{metric} {' '.join(key)}"] = (clients[key], gateway[key])
    return found
