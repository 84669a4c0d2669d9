"""The attention matching of packed samples against one materialised map of the whole row, in float64."""

import pytest
import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.losses.kinds import DistanceKind
from distill.objective import Objective
from distill.pieces import pieces_of
from distill.recipe import AlignmentConfig, LossConfig, MatchingConfig
from distill.signals import AttentionShape, QueryKey, Signals

TOLERANCE = 1e-12
LENGTHS = [3, 37, 1, 23]
SEGMENT_T = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
IS_SEEN_TT = (SEGMENT_T[:, None] == SEGMENT_T).tril()
STUDENT = AttentionShape(num_layers=1, num_heads=4, num_key_value_heads=2, head_size=8)
TEACHER = AttentionShape(num_layers=1, num_heads=6, num_key_value_heads=3, head_size=8)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    is_token_BT = torch.arange(37) < torch.tensor(LENGTHS)[:, None]
    # At least one row of a sample's, but none of the last one's: as if its text had been cut off.
    question_BT = is_token_BT & (torch.arange(37) % 3 == 0)
    question_BT[3] = False
    return Batch(
        names=("a", "b", "c", "d"),
        input_ids_BT=torch.randint(1, 90, (4, 37), generator=generator) * is_token_BT,
        is_token_BT=is_token_BT,
        position_ids_3BT=torch.randint(0, 3, (3, 4, 37), generator=generator).cumsum(dim=2) * is_token_BT,
        images_before_BT=torch.randint(0, 2, (4, 37), generator=generator).cumsum(dim=1) * is_token_BT,
        question_BT=question_BT,
        answer_BT=question_BT,
        image_token_id=0,
        images=(),
        is_packed=True,
    )


def make_layer(shape: AttentionShape, seed: int) -> QueryKey:
    generator = torch.Generator().manual_seed(seed)
    q, k = (
        2 * torch.randn(1, heads, sum(LENGTHS), shape.head_size, generator=generator, dtype=torch.float64)
        for heads in (shape.num_heads, shape.num_key_value_heads)
    )
    return QueryKey(q_BHTD=q, k_BKTD=k, scale=shape.head_size**-0.5)


def make_objective(config: MatchingConfig) -> Objective:
    loss = LossConfig(lambda_kl=0, lambda_sft=0, matching=config, alignment=AlignmentConfig(weight=0))
    objective = Objective(loss, student=STUDENT, teacher=TEACHER, vocabulary_size=90).double()
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(5))
    return objective


def whole_map(layer: QueryKey, bias_TT: Tensor) -> Tensor:
    """[H, T, T]: softmax of the whole row at once, with the other samples' keys masked out."""
    q_HTD, k_KTD = layer.q_BHTD[0], layer.k_BKTD[0]
    k_HTD = k_KTD.repeat_interleave(len(q_HTD) // len(k_KTD), dim=0)
    logits_HTT = q_HTD @ k_HTD.mT * layer.scale + bias_TT
    return logits_HTT.masked_fill(~IS_SEEN_TT, -torch.inf).softmax(dim=-1)


def tilt_bias(batch: Batch, config: MatchingConfig) -> Tensor:
    """γ·log(1 + Δ/Δ0) between all tokens of the row, for the whole of γ."""
    places_AT = {
        "token": torch.arange(sum(LENGTHS))[None],
        "position": batch.position_ids_3BT[:, batch.is_token_BT],
        "image": batch.images_before_BT[batch.is_token_BT][None],
    }[config.distance]
    distance_TT = (places_AT[:, :, None] - places_AT[:, None]).abs().amax(dim=0).double()
    return config.gamma_max * torch.log1p(distance_TT / config.reference_distance)


@pytest.mark.parametrize("max_rows", [None, 5], ids=["all rows", "5 rows of a sample"])
@pytest.mark.parametrize("distance", ["token", "position", "image"])
def test_packed_matching_equals_the_materialised_map(distance: DistanceKind, max_rows: int | None) -> None:
    config = MatchingConfig(distance=distance, gamma_max=0.7, reference_distance=1.5, max_rows=max_rows)
    batch, objective = make_batch(), make_objective(config)
    student, teacher = make_layer(STUDENT, 1), make_layer(TEACHER, 2)
    leaves = [student.q_BHTD.requires_grad_(), student.k_BKTD.requires_grad_(), *objective.parameters()]
    nothing = torch.empty(0, 0)
    losses = objective(
        Signals(logits_NV=nothing, layers={0: student}), Signals(logits_NV=nothing, layers={0: teacher}), batch, 1.0
    )

    bias_TT = tilt_bias(batch, config)
    p_STT = torch.einsum("sh,hij->sij", objective.map_mixing[0](), whole_map(teacher, bias_TT))
    q_STT = whole_map(student, bias_TT)
    log_p_STT, log_q_STT = (torch.where(IS_SEEN_TT, each_STT, 1.0).log() for each_STT in (p_STT, q_STT))
    kl_ST = (p_STT * (log_p_STT - log_q_STT)).sum(dim=-1)
    rows = batch.rows("all", at_most=max_rows, draw="1.0")
    starts_B = torch.tensor([0, *LENGTHS[:-1]]).cumsum(dim=0)
    wanted_R = (rows.index_BR + starts_B[:, None])[rows.valid_BR]
    expected = kl_ST[:, wanted_R].mean()

    assert len(wanted_R) == sum(min(length, max_rows or length) for length in LENGTHS)
    assert expected > 0.05
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=TOLERANCE)
    for ours, truth in zip(
        torch.autograd.grad(losses.total, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", ["all", "question"])
def test_packed_alignment_is_the_mean_square_over_all_rows(rows: str) -> None:
    batch = make_batch()
    config = LossConfig(
        lambda_kl=0, lambda_sft=0, matching=MatchingConfig(weight=0), alignment=AlignmentConfig(rows=rows)
    )
    objective = Objective(config, student=STUDENT, teacher=TEACHER, vocabulary_size=90).double()
    student, teacher = make_layer(STUDENT, 1), make_layer(TEACHER, 2)
    nothing = torch.empty(0, 0)
    losses = objective(
        Signals(logits_NV=nothing, layers={0: student}), Signals(logits_NV=nothing, layers={0: teacher}), batch, 0.0
    )
    mask_BT = batch.is_token_BT if rows == "all" else batch.question_BT
    wanted_T = mask_BT[batch.is_token_BT]
    expected = 0.0
    for ours, theirs, mixing in (
        (student.q_BHTD, teacher.q_BHTD, objective.query_mixing[0]()),
        (student.k_BKTD, teacher.k_BKTD, objective.key_mixing[0]()),
    ):
        mix_STD = torch.einsum("sh,htd->std", mixing, theirs[0])
        expected += float((ours[0] - mix_STD)[:, wanted_T].square().mean().detach())
    assert losses.total.item() == pytest.approx(expected, rel=1e-12)


def test_pieces_leave_out_what_has_no_row_and_share_one() -> None:
    batch = make_batch()
    layer = make_layer(STUDENT, 1)
    pieces = list(pieces_of(batch, batch.rows("question"), layer, layer))
    assert [piece.student.q_BHTD.shape[2] for piece in pieces] == [3, 37, 1]
    assert [piece.share for piece in pieces] == [1 / 15, 13 / 15, 1 / 15]
    assert [piece.places.images_before_BT.shape for piece in pieces] == [(1, 3), (1, 37), (1, 1)]
    assert pieces[1].rows.index_BR.tolist() == [list(range(0, 37, 3))]
    assert all(piece.rows.valid_BR.all() for piece in pieces)
