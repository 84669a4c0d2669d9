"""Names that recipes use; free of torch, so that reading a recipe is quick."""

from typing import Literal

RowKind = Literal["all", "question", "answer"]
DistanceKind = Literal["token", "position", "image"]
MatchingKernel = Literal["auto", "torch", "triton"]
