"""Run by test_writer.py: kills a writer before each line that it executes, and takes up its work each time.

Prints how many kills there were, and the folders in which something differs from an uninterrupted recording.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from distill.recording.content import SampleContent
from distill.recording.manifest import Manifest
from distill.recording.writer import RecordingWriter
from distill.signals import AttentionShape

NUM_STEPS = 3
WATCHED = {"files.py", "index.py", "manifest.py", "writer.py"}
MANIFEST = Manifest(
    teacher={"path": "teacher"},
    processor={},
    data={},
    layers={},
    logits=None,
    dtype="float32",
    attention=AttentionShape(num_layers=1, num_heads=1, num_key_value_heads=1, head_size=1),
    versions={},
    coverage=None,
)


def record(folder: Path) -> None:
    with RecordingWriter(folder, MANIFEST) as writer:
        for step in range(NUM_STEPS):
            if step in writer.steps:
                continue
            # The last step meets the first one's sample again.
            content = SampleContent(tokens=f"tokens {step % 2}", positions="positions", images="images")
            new = writer.new_samples([content])
            writer.add(
                step,
                num_samples=1,
                names=[f"sample {step}" for _ in new],
                contents=[content for _ in new],
                tensors={f"{index}.k": torch.arange(5) + step for index in new},
            )
        writer.finish(steps=NUM_STEPS, is_every_sample=False)


def kill_before_line(number: int) -> None:
    """SIGKILL to this process before the writer's code executes this line, counted from now."""
    seen = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal seen
        path = Path(frame.f_code.co_filename)
        if path.parent.name != "recording" or path.name not in WATCHED:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def is_killed(folder: Path, number: int) -> bool:
    child = os.fork()
    if child == 0:
        kill_before_line(number)
        record(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(root: Path) -> None:
    # A kill, unlike a power cut, takes nothing from the system's cache, and several thousand syncs take minutes.
    os.fsync = lambda _descriptor: None
    record(root / "whole")
    expected = files(root / "whole")
    wrong: list[int] = []
    number = 1
    while is_killed(root / "killed", number):
        record(root / "killed")
        if files(root / "killed") != expected:
            wrong.append(number)
        shutil.rmtree(root / "killed")
        number += 1
    print(number - 1, wrong)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
