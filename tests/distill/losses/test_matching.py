"""The chunked loss against a materialised one in float64, written as plainly as the formula."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from distill.losses.kinds import DistanceKind
from distill.losses.matching import Tilt, attention_matching
from distill.losses.rows import Places, Rows, rows_where
from distill.signals import QueryKey

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """Two samples of different lengths; 4 student heads over 2 key-value heads, teacher heads as asked."""

    student: QueryKey
    teacher: QueryKey
    places: Places
    mixing_SH: Tensor
    lengths: tuple[int, int] = (37, 23)

    def rows(self) -> Rows:
        return rows_where(torch.arange(37) < torch.tensor(self.lengths)[:, None])

    def leaves(self) -> list[Tensor]:
        tensors = (self.student.q_BHTD, self.student.k_BKTD, self.mixing_SH)
        return [tensor.requires_grad_() for tensor in tensors]


def make_case(teacher_heads: int = 6, dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(teacher_heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    images_before_BT = (torch.rand(2, 37, generator=generator) < 0.3).cumsum(dim=1)
    position_ids_3BT = torch.randint(0, 3, (3, 2, 37), generator=generator).cumsum(dim=2)
    return Case(
        student=QueryKey(q_BHTD=normal(2, 4, 37, 8), k_BKTD=normal(2, 2, 37, 8), scale=8**-0.5),
        # Another head size than the student's: only the maps must fit each other.
        teacher=QueryKey(q_BHTD=normal(2, teacher_heads, 37, 16), k_BKTD=normal(2, 2, 37, 16), scale=0.25),
        places=Places(position_ids_3BT=position_ids_3BT, images_before_BT=images_before_BT),
        mixing_SH=normal(4, teacher_heads).softmax(dim=-1),
    )


def reference_distance(places: Places, kind: DistanceKind, sample: int, i: int, j: int) -> float:
    if kind == "token":
        return i - j
    if kind == "image":
        return float(places.images_before_BT[sample, i] - places.images_before_BT[sample, j])
    axes = places.position_ids_3BT[:, sample, i] - places.position_ids_3BT[:, sample, j]
    return float(axes.abs().max())


def reference_row(layer: QueryKey, tilt: Tilt, places: Places, sample: int, head: int, i: int) -> Tensor:
    """The tilted attention of one row: softmax first, then the tilt on probabilities, then normalised again."""
    group = layer.q_BHTD.shape[1] // layer.k_BKTD.shape[1]
    keys_TD = layer.k_BKTD[sample, head // group, : i + 1]
    p_T = (keys_TD @ layer.q_BHTD[sample, head, i] * layer.scale).softmax(dim=-1)
    distances = [reference_distance(places, tilt.kind, sample, i, j) for j in range(i + 1)]
    weights = [(1 + distance / tilt.reference_distance) ** tilt.gamma for distance in distances]
    tilted_T = p_T * torch.tensor(weights, dtype=p_T.dtype)
    return tilted_T / tilted_T.sum()


def reference_loss(case: Case, tilt: Tilt, mixing_SH: Tensor, rows: Rows) -> Tensor:
    values = []
    for sample in range(2):
        for i in rows.index_BR[sample][rows.valid_BR[sample]].tolist():
            teacher_rows = [
                reference_row(case.teacher, tilt, case.places, sample, head, i) for head in range(mixing_SH.shape[1])
            ]
            for head in range(4):
                target_T = sum(a * p for a, p in zip(mixing_SH[head], teacher_rows, strict=True))
                student_T = reference_row(case.student, tilt, case.places, sample, head, i)
                values.append((target_T * (target_T.log() - student_T.log())).sum())
    return torch.stack(values).mean()


def logits(layer: QueryKey, sample: int, head: int) -> Tensor:
    group = layer.q_BHTD.shape[1] // layer.k_BKTD.shape[1]
    return layer.scale * layer.q_BHTD[sample, head] @ layer.k_BKTD[sample, head // group].T


def tilted(kind: DistanceKind = "image", gamma: float = 0.7) -> Tilt:
    return Tilt(kind=kind, reference_distance=1.5, gamma=gamma)


def chunked_loss(case: Case, tilt: Tilt, mixing_SH: Tensor | None, rows: Rows, chunk_rows: int) -> Tensor:
    most_heads = max(case.student.q_BHTD.shape[1], case.teacher.q_BHTD.shape[1])
    return attention_matching(
        case.student,
        case.teacher,
        rows=rows,
        places=case.places,
        tilt=tilt,
        mixing_SH=mixing_SH,
        # Of float32 values: so many rows of 37 keys in 2 samples.
        chunk_bytes=4 * 2 * most_heads * 37 * chunk_rows,
    )


@pytest.mark.parametrize("chunk_rows", [37, 5], ids=["one chunk", "chunks of 5"])
@pytest.mark.parametrize("kind", ["token", "position", "image"])
@pytest.mark.parametrize("teacher_heads", [2, 6], ids=["2 teacher heads", "6 teacher heads"])
def test_value_and_gradients_equal_the_materialised_form(
    teacher_heads: int, kind: DistanceKind, chunk_rows: int
) -> None:
    case = make_case(teacher_heads)
    leaves = case.leaves()
    expected = reference_loss(case, tilted(kind), case.mixing_SH, case.rows())
    actual = chunked_loss(case, tilted(kind), case.mixing_SH, case.rows(), chunk_rows)
    assert expected > 0.05
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[torch.float64])
    for ours, truth in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=TOLERANCE[torch.float64])


def test_one_to_one_heads_equal_an_identity_mix() -> None:
    case = make_case(teacher_heads=4)
    expected = reference_loss(case, tilted(), torch.eye(4, dtype=torch.float64), case.rows())
    torch.testing.assert_close(chunked_loss(case, tilted(), None, case.rows(), 8), expected, rtol=0, atol=1e-12)


def test_float32_stays_close_to_float64() -> None:
    expected = chunked_loss(make_case(), tilted(), make_case().mixing_SH, make_case().rows(), 8)
    case = make_case(dtype=torch.float32)
    actual = chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 8)
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[torch.float32], atol=0)


def test_bfloat16_is_computed_in_float32() -> None:
    case = make_case(dtype=torch.bfloat16)
    widened = dataclasses.replace(
        case,
        student=QueryKey(q_BHTD=case.student.q_BHTD.float(), k_BKTD=case.student.k_BKTD.float(), scale=8**-0.5),
        teacher=QueryKey(q_BHTD=case.teacher.q_BHTD.float(), k_BKTD=case.teacher.k_BKTD.float(), scale=0.25),
    )
    mixing_SH = case.mixing_SH.float()
    actual = chunked_loss(case, tilted(), mixing_SH, case.rows(), 8)
    assert torch.equal(actual, chunked_loss(widened, tilted(), mixing_SH, case.rows(), 8))


def test_only_the_given_rows_count() -> None:
    case = make_case()
    mask_BT = torch.zeros(2, 37, dtype=torch.bool)
    mask_BT[0, [3, 36]] = True
    mask_BT[1, 22] = True
    rows = rows_where(mask_BT)
    expected = reference_loss(case, tilted(), case.mixing_SH, rows)
    torch.testing.assert_close(chunked_loss(case, tilted(), case.mixing_SH, rows, 1), expected, rtol=0, atol=1e-12)


def test_padding_does_not_reach_the_loss() -> None:
    case, spoiled = make_case(), make_case()
    for tensor in (spoiled.student.q_BHTD, spoiled.student.k_BKTD, spoiled.teacher.q_BHTD, spoiled.teacher.k_BKTD):
        tensor[1, :, 23:] = 1e3
    clean = chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 8)
    assert torch.equal(chunked_loss(spoiled, tilted(), case.mixing_SH, case.rows(), 8), clean)


def test_equal_models_have_no_loss_at_any_tilt() -> None:
    case = make_case()
    equal = dataclasses.replace(case, teacher=case.student)
    for gamma in (0.0, 2.0):
        assert abs(chunked_loss(equal, tilted(gamma=gamma), None, case.rows(), 8)) < 1e-14


def test_at_a_high_temperature_logits_are_matched() -> None:
    """KL of two softmaxes tends to half the variance of their logits' difference over the square of the temperature."""
    case, temperature = make_case(teacher_heads=4), 1e4
    hot = [layer.at_temperature(temperature) for layer in (case.student, case.teacher)]
    hot_case = dataclasses.replace(case, student=hot[0], teacher=hot[1])
    found = temperature**2 * chunked_loss(hot_case, tilted(gamma=0.0), None, case.rows(), 37)
    halves = []
    for sample, length in enumerate(case.lengths):
        for head in range(4):
            difference_TT = logits(case.student, sample, head) - logits(case.teacher, sample, head)
            halves += [difference_TT[i, : i + 1].var(correction=0) / 2 for i in range(length)]
    torch.testing.assert_close(found, torch.stack(halves).mean(), rtol=1e-3, atol=0)


def test_the_tilt_moves_weight_to_far_keys() -> None:
    """Two keys, one near and one at distance 3: with Δ0 = 1.5, γ = 1 the far one counts three times as much."""
    tilt = tilted("image", gamma=1.0)
    places = Places(position_ids_3BT=torch.zeros(3, 1, 2, dtype=torch.long), images_before_BT=torch.tensor([[0, 3]]))
    bias_BRT = tilt.bias(places, torch.tensor([[1]]), 2, torch.float32)
    torch.testing.assert_close(bias_BRT[0, 0].exp(), torch.tensor([3.0, 1.0]))
    assert tilted("image", gamma=0.0).bias(places, torch.tensor([[1]]), 2, torch.float32).abs().max() == 0


def test_peaked_attention_gives_finite_gradients() -> None:
    case = make_case(dtype=torch.float32)
    case.teacher.q_BHTD.mul_(300)
    case.student.q_BHTD.mul_(300)
    leaves = case.leaves()
    loss = chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 8)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


def test_no_map_is_kept_for_the_backward_pass() -> None:
    case = make_case()
    case.leaves()
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 5)
    assert max(saved) == case.student.q_BHTD.numel()


def test_a_student_that_is_not_trained_costs_no_gradients() -> None:
    case = make_case()
    mixing_SH = case.mixing_SH.requires_grad_()
    expected = reference_loss(case, tilted(), mixing_SH, case.rows())
    actual = chunked_loss(case, tilted(), mixing_SH, case.rows(), 5)
    for ours, truth in zip(
        torch.autograd.grad(actual, mixing_SH), torch.autograd.grad(expected, mixing_SH), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=0, atol=TOLERANCE[torch.float64])


def test_a_teacher_that_asks_for_gradients_is_refused() -> None:
    case = make_case()
    case.teacher.k_BKTD.requires_grad_()
    with pytest.raises(ValueError, match="the teacher's q and k ask for gradients"):
        chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 5)


def test_unequal_head_counts_need_mixing() -> None:
    case = make_case(teacher_heads=6)
    with pytest.raises(ValueError, match="6 teacher heads for 4 student heads"):
        chunked_loss(case, tilted(), None, case.rows(), 8)


def test_autocast_changes_nothing() -> None:
    case = make_case(dtype=torch.float32)
    expected = chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked_loss(case, tilted(), case.mixing_SH, case.rows(), 8), expected)
