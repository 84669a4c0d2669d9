"""`laid-engine`: what it becomes. `deploy/try_images.py` runs it to the first answer."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from server.engines.cli import main

CHECKPOINT = Path(__file__).parents[3] / "distill/miniature/checkpoints/base"


@pytest.fixture
def becomes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the call that would replace the test's own process."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.extend(call))
    return calls


def after(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_becomes_vllm_with_what_the_gateway_relies_on(becomes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    main(
        [str(CHECKPOINT), "--host", "0.0.0.0", "--max-images", "7", "--max-model-len", "1024", "--enable-log-requests"]
    )

    program, command, environment = becomes
    assert program == command[0] == sys.executable
    assert after(command, "--model") == str(CHECKPOINT)
    assert (after(command, "--served-model-name"), after(command, "--port")) == ("base", "8001")
    assert after(command, "--host") == "0.0.0.0"
    assert after(command, "--limit-mm-per-prompt") == '{"image": 7, "video": 0}'
    assert "--enable-prompt-tokens-details" in command
    # What it does not know stands last, in its order.
    assert command[-3:] == ["--max-model-len", "1024", "--enable-log-requests"]
    assert (environment["VLLM_NO_USAGE_STATS"], environment["HF_HUB_OFFLINE"]) == ("1", "0")


def test_a_folder_that_is_no_checkpoint_is_refused(
    becomes: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none")]) == 2

    assert "no such folder" in capsys.readouterr().err
    assert not becomes


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    text = capsys.readouterr().out
    assert all(word in text for word in ("examples:", "LAID_MAX_IMAGES", "goes to vLLM", "exit status"))
