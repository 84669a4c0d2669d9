"""The whole loss of a step, and the mixing weights that belong to it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.losses.alignment import query_key_alignment
from distill.losses.logits import answer_cross_entropy, logit_distillation
from distill.losses.matching import Tilt, attention_matching
from distill.losses.rows import Rows
from distill.losses.top_logits import top_logit_distillation
from distill.mixing import LinearMixing, SoftmaxMixing
from distill.pieces import pieces_of
from distill.recipe import AlignmentConfig, LayerPair, LossConfig, MatchingConfig
from distill.schedule import gamma_at
from distill.signals import AttentionShape, QueryKey, Signals


class Losses(NamedTuple):
    """The weighted sum, with gradients, and every unweighted term, for the log.

    A tuple, in which DeepSpeed finds the tensor that its backward pass starts from.
    """

    total: Tensor
    terms: dict[str, float]


class Objective(nn.Module):
    """L = λ_LAid·(alignment + matching) + λ_KL·KL + λ_SFT·SFT (LAid, arXiv 2512.21576).

    Terms whose weight is 0 are neither computed nor logged. The module's parameters are the head mixing weights.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        student: AttentionShape,
        teacher: AttentionShape | None,
        vocabulary_size: int,
    ) -> None:
        """Resolves the layers and makes the mixing weights.

        Args:
            teacher: None if no term needs one.
            vocabulary_size: true size of the tokenizer.

        Raises:
            ValueError: a layer that does not exist, unequal head counts without mixing, unequal head sizes.
        """
        super().__init__()
        self.config = config
        self._vocabulary_size = vocabulary_size
        self._aligned: list[LayerPair] = []
        self._matched: list[LayerPair] = []
        self.query_mixing, self.key_mixing = nn.ModuleList(), nn.ModuleList()
        self.map_mixing = nn.ModuleList()
        if teacher is None:
            return
        if config.alignment_weight > 0:
            self._aligned = _resolved(config.alignment, "alignment", student, teacher)
            _check_head_sizes(student, teacher)
            for _ in self._aligned:
                self.query_mixing.append(LinearMixing(student.num_heads, teacher.num_heads))
                self.key_mixing.append(LinearMixing(student.num_key_value_heads, teacher.num_key_value_heads))
        if config.matching_weight > 0:
            self._matched = _resolved(config.matching, "matching", student, teacher)
            _check_head_counts(config.matching, student, teacher)
            if config.matching.mixing == "softmax":
                self.map_mixing.extend(SoftmaxMixing(student.num_heads, teacher.num_heads) for _ in self._matched)

    @property
    def student_layers(self) -> frozenset[int]:
        """Layers whose q and k the student must give."""
        return frozenset(pair.student for pair in (*self._aligned, *self._matched))

    @property
    def teacher_layers(self) -> frozenset[int]:
        """Layers whose q and k the teacher must give."""
        return frozenset(pair.teacher for pair in (*self._aligned, *self._matched))

    def row_counts(self, batch: Batch) -> dict[str, int]:
        """How many rows each term takes its mean over; terms without weight are there too."""
        answers = int(batch.answer_BT.sum())
        counts = {"sft": answers, "kl": answers}
        counts["alignment"] = int(batch.rows(self.config.alignment.rows).valid_BR.sum())
        counts["matching"] = int(self._matching_rows(batch, progress=0.0).valid_BR.sum())
        return counts

    def forward(
        self,
        student: Signals,
        teacher: Signals | None,
        batch: Batch,
        progress: float,
        shares: Mapping[str, float] | None = None,
    ) -> Losses:
        """The loss at this share of the training, from 0 at the first step to 1 at the last.

        Args:
            shares: of each term's rows in the whole step, the part that this batch has. The losses of a step's parts
                then sum to the loss of the step in one piece. None: the batch is the step.
        """
        config = self.config
        weighted: dict[str, tuple[float, Tensor]] = {}
        if config.lambda_sft > 0:
            weighted["sft"] = config.lambda_sft, answer_cross_entropy(student.logits_NV, batch.answer_ids)
        if teacher is not None and config.lambda_kl > 0:
            weighted["kl"] = config.lambda_kl, self._logit_distillation(student, teacher)
        if teacher is not None and self._aligned:
            weighted["alignment"] = config.alignment_weight, self._alignment(student, teacher, batch)
        if teacher is not None and self._matched:
            weighted["matching"] = config.matching_weight, self._matching(student, teacher, batch, progress)
        if shares is not None:
            weighted = {name: (weight, shares[name] * value) for name, (weight, value) in weighted.items()}
        total = torch.stack([weight * value for weight, value in weighted.values()]).sum()
        return Losses(total=total, terms={name: value.item() for name, (_, value) in weighted.items()})

    def gamma(self, progress: float) -> float:
        """The tilt's exponent at this share of the training."""
        matching = self.config.matching
        return gamma_at(progress, matching.schedule, matching.gamma_max)

    def _logit_distillation(self, student: Signals, teacher: Signals) -> Tensor:
        size = self._vocabulary_size
        if teacher.top_logits is not None:
            return top_logit_distillation(student.logits_NV, teacher.top_logits, vocabulary_size=size)
        return logit_distillation(
            student.logits_NV, teacher.logits_NV, temperature=self.config.temperature, vocabulary_size=size
        )

    def _alignment(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        rows = batch.rows(self.config.alignment.rows)
        values = []
        for pair, query_mixing, key_mixing in zip(self._aligned, self.query_mixing, self.key_mixing, strict=True):
            weights_q_SH, weights_k_SH = query_mixing(), key_mixing()
            for piece in pieces_of(batch, rows, student.layers[pair.student], teacher.layers[pair.teacher]):
                value = query_key_alignment(
                    piece.student, piece.teacher, rows=piece.rows, weights_q_SH=weights_q_SH, weights_k_SH=weights_k_SH
                )
                values.append(piece.share * value)
        return torch.stack(values).sum() / len(self._aligned)

    def _matching(self, student: Signals, teacher: Signals, batch: Batch, progress: float) -> Tensor:
        config = self.config.matching
        tilt = Tilt(kind=config.distance, reference_distance=config.reference_distance, gamma=self.gamma(progress))
        rows = self._matching_rows(batch, progress)
        mixings = [mixing() for mixing in self.map_mixing] or [None] * len(self._matched)
        values = []
        for pair, mixing_SH in zip(self._matched, mixings, strict=True):
            for piece in pieces_of(batch, rows, *self._matched_heads(student, teacher, pair)):
                value = attention_matching(
                    piece.student.at_temperature(config.temperature),
                    piece.teacher.at_temperature(config.temperature),
                    rows=piece.rows,
                    places=piece.places,
                    tilt=tilt,
                    mixing_SH=mixing_SH,
                    chunk_bytes=config.chunk_mib * 2**20,
                    kernel=config.kernel,
                )
                values.append(piece.share * value)
        return torch.stack(values).sum() / len(self._matched) * config.temperature**2

    def _matched_heads(self, student: Signals, teacher: Signals, pair: LayerPair) -> tuple[QueryKey, QueryKey]:
        ours, theirs = student.layers[pair.student], teacher.layers[pair.teacher]
        heads = self.config.matching.heads
        if heads is None:
            return ours, theirs
        return ours.only([head.student for head in heads]), theirs.only([head.teacher for head in heads])

    def _matching_rows(self, batch: Batch, progress: float) -> Rows:
        """Drawn anew at every step, and the same ones in whatever parts the step is taken."""
        config = self.config.matching
        return batch.rows(config.rows, at_most=config.max_rows, draw=str(progress))


def _resolved(
    config: AlignmentConfig | MatchingConfig, name: str, student: AttentionShape, teacher: AttentionShape
) -> list[LayerPair]:
    return [
        LayerPair(
            student=_layer(pair.student, student.num_layers, f"loss.{name}.layers[{index}].student"),
            teacher=_layer(pair.teacher, teacher.num_layers, f"loss.{name}.layers[{index}].teacher"),
        )
        for index, pair in enumerate(config.layers)
    ]


def _layer(layer: int, num_layers: int, key: str) -> int:
    if not -num_layers <= layer < num_layers:
        raise ValueError(f"{key}: {layer}, expected {-num_layers} to {num_layers - 1}")
    return layer % num_layers


def _check_head_sizes(student: AttentionShape, teacher: AttentionShape) -> None:
    if student.head_size != teacher.head_size:
        raise ValueError(
            f"loss.alignment.weight: heads of {student.head_size} (student) and {teacher.head_size} (teacher), "
            "expected equal head sizes, or the weight 0"
        )


def _check_head_counts(config: MatchingConfig, student: AttentionShape, teacher: AttentionShape) -> None:
    for index, pair in enumerate(config.heads or ()):
        for name, head, count in (
            ("student", pair.student, student.num_heads),
            ("teacher", pair.teacher, teacher.num_heads),
        ):
            if head >= count:
                raise ValueError(f"loss.matching.heads[{index}].{name}: {head}, expected 0 to {count - 1}")
    if config.heads is None and config.mixing == "none" and student.num_heads != teacher.num_heads:
        raise ValueError(
            f"loss.matching.mixing: 'none' with {student.num_heads} student and {teacher.num_heads} teacher heads, "
            "expected 'softmax'"
        )
