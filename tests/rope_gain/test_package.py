import subprocess
import sys

import pytest

import rope_gain


def test_importing_the_package_imports_no_heavy_library():
    code = "import rope_gain, sys; print(*({'torch', 'transformers', 'vllm'} & sys.modules.keys()))"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert output.stdout.strip() == ""


def test_every_public_name_resolves():
    assert all(callable(getattr(rope_gain, name)) for name in rope_gain.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'atach'"):
        rope_gain.atach  # noqa: B018
