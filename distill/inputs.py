"""Compares what two models would be given for the same samples."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.families import find_family
from distill.loading import load_processor
from distill.recipe import StretchConfig, TeacherConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_teacher(
    config: TeacherConfig,
    model: "PreTrainedModel",
    samples: Sequence[Sample],
    *,
    collate: Collator,
    student_tokenizer: Any,
    stretch: StretchConfig | None,
) -> None:
    """Makes sure that a teacher with its own processor sees what the student sees, and means the same tokens.

    Args:
        samples: those of the first step.
        collate: the student's.
        stretch: of the recipe's data.

    Raises:
        ValueError: their tokenizers or their inputs differ; the message names the token or the sample.
    """
    processor = load_processor(config)
    check_same_vocabulary(student_tokenizer, processor.tokenizer)
    teacher_collate = Collator(processor, find_family(model).rope_index(model), stretch=stretch)
    check_same_inputs(collate(samples), teacher_collate(samples))


def check_same_inputs(student: Batch, teacher: Batch) -> None:
    """Makes sure that the teacher sees what the student sees; afterwards both are given the same tensors.

    Raises:
        ValueError: token ids, numbers of images, grids or positions differ; the message names the sample.
    """
    pairs = zip(student.names, _inputs_by_sample(student), _inputs_by_sample(teacher), strict=True)
    for name, ours, theirs in pairs:
        difference = _image_difference(ours, theirs) or _token_difference(ours, theirs)
        if difference is not None:
            raise ValueError(f"inputs: {name}: {difference}")
    if not torch.equal(student.position_ids_3BT, teacher.position_ids_3BT):
        differs_B = (student.position_ids_3BT != teacher.position_ids_3BT).any(dim=2).any(dim=0)
        raise ValueError(f"inputs: {student.names[int(differs_B.int().argmax())]}: the positions differ")


def check_same_vocabulary(student: Any, teacher: Any) -> None:
    """Makes sure that a logit means the same token in both models; what pads the embeddings is not compared.

    Args:
        student: its tokenizer, as transformers loads it.
        teacher: likewise.

    Raises:
        ValueError: a token has another number, or is not there.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    token = differing[0]
    raise ValueError(
        f"tokenizers: {len(differing)} tokens differ; {token!r} is {ours.get(token, 'unknown')} for the student and "
        f"{theirs.get(token, 'unknown')} for the teacher; expected models that share a tokenizer"
    )


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """One sample's, without padding."""

    tokens: list[int]
    num_image_tokens: int
    grids: list[list[int]]


def _inputs_by_sample(batch: Batch) -> list[_Inputs]:
    """What lacks at the end of the batch's images lacks in its last samples."""
    images, inputs = iter(batch.images), []
    for ids_T, is_token_T, images_before_T in zip(
        batch.input_ids_BT, batch.is_token_BT, batch.images_before_BT, strict=True
    ):
        ids_T = ids_T[is_token_T]
        num_images = int(images_before_T[is_token_T].max())
        inputs.append(
            _Inputs(
                tokens=ids_T.tolist(),
                num_image_tokens=int((ids_T == batch.image_token_id).sum()),
                grids=[image.grid_3.tolist() for image in itertools.islice(images, num_images)],
            )
        )
    return inputs


def _image_difference(ours: _Inputs, theirs: _Inputs) -> str | None:
    if len(ours.grids) != len(theirs.grids):
        return f"{len(ours.grids)} images for the student, {len(theirs.grids)} for the teacher"
    for index, (our_grid, their_grid) in enumerate(zip(ours.grids, theirs.grids, strict=True)):
        if our_grid != their_grid:
            return (
                f"image {index} has the grid {our_grid} for the student and {their_grid} for the teacher; "
                "expected image processors with equal settings"
            )
    return None


def _token_difference(ours: _Inputs, theirs: _Inputs) -> str | None:
    if ours.num_image_tokens != theirs.num_image_tokens:
        return f"{ours.num_image_tokens} image tokens for the student, {theirs.num_image_tokens} for the teacher"
    if ours.tokens != theirs.tokens:
        return f"{_first_difference(ours.tokens, theirs.tokens)}; expected the same tokenizer and chat template"
    return None


def _first_difference(ours: list[int], theirs: list[int]) -> str:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"token {index} is {a} for the student and {b} for the teacher"
    return f"{len(ours)} tokens for the student, {len(theirs)} for the teacher"
