"""What `distill reproduce` compares: LAid, its rivals with the same budget, and LAid without each of its parts."""

from dataclasses import dataclass
from typing import Literal

Start = Literal["teacher", "base", "trained"]

_NO_TEACHER = ("teacher=null", "loss.lambda_laid=0", "loss.lambda_kl=0")
_NO_GAIN = "gain=null"
_NO_STRETCH = "data.stretch=null"
_PAPERS_LAYERS = (
    "loss.alignment.weight=1",
    "loss.matching.weight=1",
    "loss.matching.temperature=1",
    "loss.matching.layers=[{student: -1, teacher: -1}]",
)
# The heads of layer 1 by what they give to the needle's image, in the teacher (the first three of four) and in the base
# student: distill spectrum miniature:teacher miniature:base --images 50 --rows answer
_RETRIEVAL_HEADS = (
    "loss.matching.mixing=none",
    "loss.matching.heads=[{student: 2, teacher: 0}, {student: 1, teacher: 2}, {student: 0, teacher: 1}]",
    "loss.matching.weight=1",
    "loss.matching.temperature=1",
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table."""

    name: str
    """Of its folder."""
    title: str
    start: Start = "trained"
    """A committed model as it is, or one that the recipe trains from the base student."""
    overrides: tuple[str, ...] = ()
    """Of the recipe, for a trained arm."""
    is_folded: bool = False
    """Whether the student's gains are folded first: what is measured is a stock checkpoint."""
    yarn: bool = False
    self_extend: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether there is one student a seed."""
        return self.start == "trained"


ARMS = (
    Arm(name="base", title="base", start="base"),
    Arm(name="yarn", title="base with YaRN", start="base", yarn=True),
    Arm(name="self-extend", title="base with SelfExtend", start="base", self_extend=True),
    Arm(name="sft", title="SFT", overrides=(*_NO_TEACHER, _NO_GAIN, _NO_STRETCH)),
    Arm(name="sft-gain", title="SFT with gain", overrides=(*_NO_TEACHER, _NO_STRETCH)),
    Arm(name="sft-stretch", title="SFT, stretched", overrides=(*_NO_TEACHER, _NO_GAIN)),
    Arm(name="logits", title="logit distillation", overrides=("loss.lambda_laid=0", _NO_GAIN, _NO_STRETCH)),
    Arm(name="logits-stretch", title="logit distillation, stretched", overrides=("loss.lambda_laid=0", _NO_GAIN)),
    Arm(name="no-stretch", title="LAid without stretching", overrides=(_NO_STRETCH,)),
    Arm(name="papers-layers", title="LAid with the paper's layers and alignment", overrides=_PAPERS_LAYERS),
    Arm(name="retrieval-heads", title="LAid with retrieval heads matched one to one", overrides=_RETRIEVAL_HEADS),
    Arm(name="no-kl", title="LAid without KL", overrides=("loss.lambda_kl=0",)),
    Arm(name="no-matching", title="LAid without attention matching", overrides=("loss.matching.weight=0",)),
    Arm(name="no-weighting", title="LAid without distance weighting", overrides=("loss.matching.gamma_max=0",)),
    Arm(name="no-gain", title="LAid without gain", overrides=(_NO_GAIN,)),
    Arm(name="static", title="LAid, static gain, folded", overrides=("gain.position=static",), is_folded=True),
    Arm(name="laid", title="LAid"),
    Arm(name="teacher", title="teacher", start="teacher"),
)
