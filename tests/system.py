"""Programs of the system that tests run: each is needed in CI, and skipped by its package's name elsewhere."""

import os
import shutil

import pytest


def need_program(name: str, *, package: str) -> str:
    """The program's path; without it the test is skipped, or fails where CI=true."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
