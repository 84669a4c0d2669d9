"""Compares what two models would be given for the same samples."""

from typing import Any

import torch

from distill.data.batch import Batch


def check_same_inputs(student: Batch, teacher: Batch) -> None:
    """Makes sure that the teacher sees what the student sees; afterwards both are given the same tensors.

    Raises:
        ValueError: token ids, numbers of images, grids or positions differ; the message names the sample.
    """
    if len(student.images) != len(teacher.images):
        raise ValueError(f"inputs: {len(student.images)} images for the student, {len(teacher.images)} for the teacher")
    for index, (ours, theirs) in enumerate(zip(student.images, teacher.images, strict=True)):
        if not torch.equal(ours.grid_3, theirs.grid_3):
            raise ValueError(
                f"inputs: image {index} of the step has the grid {ours.grid_3.tolist()} for the student and "
                f"{theirs.grid_3.tolist()} for the teacher; expected image processors with equal settings"
            )
    for index, name in enumerate(student.names):
        ours_T = student.input_ids_BT[index][student.is_token_BT[index]]
        theirs_T = teacher.input_ids_BT[index][teacher.is_token_BT[index]]
        image_tokens = (
            int((ours_T == student.image_token_id).sum()),
            int((theirs_T == teacher.image_token_id).sum()),
        )
        if image_tokens[0] != image_tokens[1]:
            raise ValueError(
                f"inputs: {name}: {image_tokens[0]} image tokens for the student, {image_tokens[1]} for the teacher"
            )
        if not torch.equal(ours_T, theirs_T):
            raise ValueError(
                f"inputs: {name}: {_first_difference(ours_T.tolist(), theirs_T.tolist())}; "
                "expected the same tokenizer and chat template"
            )
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


def _first_difference(ours: list[int], theirs: list[int]) -> str:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"token {index} is {a} for the student and {b} for the teacher"
    return f"{len(ours)} tokens for the student, {len(theirs)} for the teacher"
