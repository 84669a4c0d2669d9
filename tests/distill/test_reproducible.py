import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.reproducible import ask_for_the_same_bits

# What `test_a_killed_recorder_loses_and_doubles_nothing` and its like hold of the products, in processes of their own.
SINES = """
import torch
from distill.reproducible import prepare_sines
torch.set_num_threads(2)
prepare_sines()
numbers = torch.linspace(-4, 4, 20_000)
assert torch.equal(numbers.sin(), numbers.sin())
assert torch.equal(numbers.cos(), numbers.cos())
"""


@pytest.mark.parametrize(("vendor", "asked"), [("GenuineIntel", "AUTO,STRICT"), ("AuthenticAMD", None)])
def test_it_is_asked_of_intels_alone(
    vendor: str, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")

    ask_for_the_same_bits(tmp_path / "cpuinfo")

    assert os.environ.get("MKL_CBWR") == asked


def test_what_the_user_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    (tmp_path / "cpuinfo").write_text("vendor_id : GenuineIntel")

    ask_for_the_same_bits(tmp_path / "cpuinfo")

    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


def test_the_first_sines_are_those_of_every_other_time() -> None:
    for _ in range(3):
        subprocess.run([sys.executable, "-c", SINES], check=True)
