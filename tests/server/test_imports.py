"""The gateway runs where neither torch nor vLLM is installed."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import server
for module in pkgutil.walk_packages(server.__path__, "server."):
    importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("server.")]))
print(sorted({"distill", "rope_gain", "torch", "transformers", "vllm"} & sys.modules.keys()))
"""


def test_no_server_module_imports_what_the_gateway_must_do_without() -> None:
    lines = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).splitlines()

    assert int(lines[0]) > 20
    assert lines[1] == "[]"
