"""A request's time is split without a gap."""

from server.telemetry.phases import Phase, Phases


def ticking(*times: float):
    steps = iter(times)
    return lambda: next(steps)


def test_phases_follow_each_other_and_add_up() -> None:
    phases = Phases(ticking(10.0, 10.5, 11.0, 13.0, 13.25, 17.25))

    phases.begin(Phase.CHECK)
    phases.begin(Phase.FETCH)
    phases.begin(Phase.CHECK)
    phases.begin(Phase.ANSWER)
    phases.end()

    assert phases.seconds() == {Phase.READ: 0.5, Phase.CHECK: 0.75, Phase.FETCH: 2.0, Phase.ANSWER: 4.0}
    assert phases.server_timing() == "read;dur=500.0, check;dur=750.0, fetch;dur=2000.0, answer;dur=4000.0"
    assert [interval.phase for interval in phases.intervals] == ["read", "check", "fetch", "check", "answer"]


def test_what_runs_still_is_not_reported_yet() -> None:
    phases = Phases(ticking(0.0, 1.0, 5.0))
    assert phases.server_timing() == ""

    phases.begin(Phase.QUEUE)

    assert phases.server_timing() == "read;dur=1000.0"
    assert phases.since_read() == 4.0


def test_ending_twice_adds_nothing() -> None:
    phases = Phases(ticking(0.0, 1.0, 2.0))
    phases.end()

    phases.end()

    assert phases.seconds() == {Phase.READ: 1.0}
