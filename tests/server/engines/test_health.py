import json
import logging

import pytest

from server.engines.health import Finding, Health
from server.telemetry.logs import JsonFormatter

GOOD, SLOW = Finding(), Finding(trouble="nothing came for 10 s")
REFUSED = Finding(trouble="refused", is_certain=True)


def health(rise: int = 2, fall: int = 3) -> Health:
    return Health("0", rise=rise, fall=fall, on_change=lambda _: None)


@pytest.mark.parametrize(
    ("findings", "is_up"),
    [
        ([], False),
        ([GOOD], True),
        ([SLOW], False),
        ([SLOW, GOOD], False),
        ([SLOW, GOOD, GOOD], True),
        ([SLOW, GOOD, SLOW, GOOD], False),
        ([GOOD, SLOW, SLOW], True),
        ([GOOD, SLOW, SLOW, SLOW], False),
        ([GOOD, SLOW, SLOW, GOOD, SLOW, SLOW], True),
        ([GOOD, REFUSED], False),
        ([GOOD, REFUSED, GOOD], False),
        ([GOOD, REFUSED, GOOD, GOOD], True),
    ],
)
def test_findings_decide_by_rise_and_fall(findings: list[Finding], is_up: bool) -> None:
    state = health()
    for finding in findings:
        state.note(finding)

    assert state.is_up == is_up


def test_each_change_is_told_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    changes: list[bool] = []
    state = Health("1", rise=1, fall=1, on_change=changes.append)
    with caplog.at_level(logging.INFO, logger="laid.server"):
        for finding in (GOOD, GOOD, SLOW, SLOW, GOOD):
            state.note(finding)

    assert changes == [True, False, True]
    entries = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [entry["event"] for entry in entries] == ["engine_up", "engine_down", "engine_up"]
    assert (entries[1]["engine"], entries[1]["trouble"]) == ("1", SLOW.trouble)


def test_the_first_finding_is_told_whatever_it_is() -> None:
    changes: list[bool] = []
    Health("0", rise=2, fall=3, on_change=changes.append).note(SLOW)

    assert changes == [False]
