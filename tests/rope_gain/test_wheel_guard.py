"""The guard, in processes of their own: what it mends happens at import."""

import subprocess
import sys


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)


def test_torchvision_and_the_processors_import_after_it():
    program = """
from rope_gain import wheel_guard
wheel_guard.install()
wheel_guard.install()
import torchvision
from transformers import Qwen2_5_VLProcessor
"""
    result = run(program)
    assert result.returncode == 0, result.stderr


def make_wheel(folder, name, version):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    (folder / name / "version.py").write_text(f"__version__ = '{version}'\n")


def answers(tmp_path, version):
    """Whether the operators are declared and torchaudio is hidden beside wheels of this version."""
    for name in ("torchvision", "torchaudio", "torchcodec"):
        make_wheel(tmp_path, name, version)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch
torch.version.cuda = None
from rope_gain import wheel_guard
wheel_guard.install()
print(hasattr(torch.ops.torchvision, "nms"), *(sys.modules.get(n, "free") for n in ("torchaudio", "torchcodec")))
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_cuda_wheels_beside_a_cpu_torch_are_mended(tmp_path):
    assert answers(tmp_path, "0.28.0+cu130") == "True None None"


def test_wheels_that_fit_are_left_alone(tmp_path):
    assert answers(tmp_path, "0.28.0+cpu") == "False free free"
