from pathlib import Path

from distill.runlog import RunLog


def test_entries_after_the_saved_step_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, first_step=0)
    for step in range(4):
        log.add({"step": step, "losses": {"kl": step}})
    with path.open("a") as file:
        file.write('{"step": 4, "los')
    resumed = RunLog(path, first_step=2)
    assert [entry["step"] for entry in resumed.entries()] == [0, 1]


def test_last_losses_are_a_mean_over_the_last_twenty_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", first_step=0)
    for step in range(30):
        log.add({"step": step, "losses": {"kl": float(step)}})
    assert log.last_losses() == {"kl": 19.5}
