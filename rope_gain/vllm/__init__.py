"""LAid architectures for vLLM. The only package of the project that imports vLLM."""

from rope_gain.families import FAMILIES


def register() -> None:
    """The `vllm.general_plugins` entry point: makes the LAid architectures known to vLLM's model registry.

    vLLM calls it in each of its processes, some more than once. The classes are named and not imported, which
    vLLM asks of plug-ins so that no process touches the device before it forks.
    """
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for family in FAMILIES:
        if family.laid_architecture not in known:
            ModelRegistry.register_model(family.laid_architecture, f"rope_gain.vllm.model:{family.laid_architecture}")
