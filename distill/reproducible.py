"""The same bits from the same numbers, on processors where that has to be asked for."""

import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def ask_for_the_same_bits(cpu_info: Path = CPU_INFO) -> None:
    """Lets MKL multiply matrices alike in every process; to be called before the first product.

    With AVX-512 its choice may follow the matrices' addresses, so that a run that goes on after a crash would end a few
    bits beside the run without one. Strict Conditional Numerical Reproducibility (oneMKL's developer guide, "Obtaining
    Numerically Reproducible Results") is for Intel's processors; others do not need it. A value that the user has set
    stays.
    """
    if cpu_info.exists() and "GenuineIntel" in cpu_info.read_text():
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def prepare_sines() -> None:
    """Computes one sine and cosine in this thread alone; to be called before any model is.

    MKL's first ones of a process, where several threads share them, are now and then of a lower accuracy than all that
    follow (seen with torch 2.13, AVX-512 and two threads).
    """
    import torch

    torch.zeros(1).sin().cos()
