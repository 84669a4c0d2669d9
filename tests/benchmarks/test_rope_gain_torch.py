"""The cheapest benchmark as a user runs it; no figure is checked, only that there is one for all that it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rope_gain_torch.py"


def test_quick_run_writes_a_figure_for_each_gain_and_phase(tmp_path):
    path = tmp_path / "result.json"

    subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--json", path],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )

    result = json.loads(path.read_text())
    assert result["machine"]["quick"] is True
    assert [row["name"] for row in result["rows"]] == [
        f"eager, {phase}: {name}"
        for phase in ("forward", "forward and backward")
        for name in ("stock", "stock against stock", "static", "log", "log, per head")
    ]
    assert all(row["value"] > 0 for row in result["rows"])
