"""LAid architectures for vLLM. The only package of the project that imports vLLM."""

from rope_gain.families import FAMILIES

OLDEST, NEWEST = (0, 31), (0, 32)
"""The vLLM versions, major and minor, that the gains are tested with."""


def register() -> None:
    """The `vllm.general_plugins` entry point: makes the LAid architectures known to vLLM's model registry.

    vLLM calls it in each of its processes, some more than once. The classes are named and not imported, which
    vLLM asks of plug-ins so that no process touches the device before it forks.
    """
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for family in FAMILIES:
        if family.laid_architecture not in known:
            ModelRegistry.register_model(family.laid_architecture, f"{__name__}:{family.laid_architecture}")


def __getattr__(name: str) -> object:
    """A LAid architecture's class, made when vLLM asks for it: only then does vLLM's version matter.

    Raises:
        RuntimeError: this version of vLLM is outside the supported range; stock checkpoints are not affected.
    """
    if name not in {family.laid_architecture for family in FAMILIES}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    from rope_gain.vllm.model import laid_class

    return laid_class(name)


def check_version() -> None:
    """RuntimeError unless vLLM's version is in the range that the gains are tested with."""
    import vllm

    if not OLDEST <= tuple(map(int, vllm.__version__.split(".")[:2])) <= NEWEST:
        raise RuntimeError(
            f"vllm: got version {vllm.__version__}, expected {'.'.join(map(str, OLDEST))} to "
            f"{'.'.join(map(str, NEWEST))}, which RoPE response gains are tested with; install one of these, or "
            "fold the gains where they are static: a folded checkpoint needs no plug-in"
        )
