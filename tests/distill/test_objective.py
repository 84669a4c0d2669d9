import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import rope_gain
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.miniature.items import make_item
from distill.model import SignalModel, Teacher
from distill.objective import Objective
from distill.recipe import AlignmentConfig, HeadPair, LayerPair, LossConfig, MatchingConfig
from distill.signals import AttentionShape, Signals

STUDENT = AttentionShape(num_layers=2, num_heads=2, num_key_value_heads=1, head_size=16)
TEACHER = AttentionShape(num_layers=3, num_heads=4, num_key_value_heads=2, head_size=16)


def make_objective(config: LossConfig, vocabulary_size: int = 300) -> Objective:
    return Objective(config, student=STUDENT, teacher=TEACHER, vocabulary_size=vocabulary_size)


@pytest.fixture(scope="module")
def models(model_folders: dict[str, Path]) -> tuple[SignalModel, Teacher]:
    student = rope_gain.load_pretrained(model_folders["base"])
    teacher = rope_gain.load_pretrained(model_folders["teacher"])
    return SignalModel(student, freeze_vision=True, feature_cache_bytes=0), Teacher(teacher, feature_cache_bytes=0)


@pytest.fixture(scope="module")
def batch(models: tuple[SignalModel, Teacher], processor: Any) -> Batch:
    items = [make_item(seed, 3, "open") for seed in range(2)]
    samples = [Sample(messages=tuple(item.messages()), answer=item.answer, name="item") for item in items]
    return Collator(processor, models[0].model.base_model.get_rope_index)(samples)


def test_the_total_is_the_weighted_sum_of_the_terms(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    config = LossConfig(
        lambda_laid=0.3, lambda_kl=0.5, lambda_sft=0.7, alignment=AlignmentConfig(weight=2.0), matching=MatchingConfig()
    )
    objective = make_objective(config)
    student, teacher = models
    losses = objective(
        student.signals(batch, objective.student_layers), teacher.signals(batch, objective.teacher_layers), batch, 0.5
    )
    terms = losses.terms
    assert set(terms) == {"sft", "kl", "alignment", "matching"}
    expected = 0.7 * terms["sft"] + 0.5 * terms["kl"] + 0.3 * (2.0 * terms["alignment"] + terms["matching"])
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    losses.total.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


def test_terms_without_weight_are_left_out(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    objective = make_objective(LossConfig(lambda_laid=0.0))
    assert not objective.student_layers
    assert not list(objective.parameters())
    student, teacher = models
    losses = objective(student.signals(batch, []), teacher.signals(batch, []), batch, 0.5)
    assert set(losses.terms) == {"sft", "kl"}


def test_gamma_changes_the_matching_with_progress(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    objective = make_objective(LossConfig(matching=MatchingConfig(gamma_max=3.0)))
    student, teacher = models[0].signals(batch, [1]), models[1].signals(batch, [2])
    start, end = (objective(student, teacher, batch, progress).terms["matching"] for progress in (0.0, 1.0))
    assert objective.gamma(0.0) == 0
    assert objective.gamma(1.0) == 3
    assert abs(start - end) > 1e-3


def test_a_temperature_divides_both_models_logits(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    student, teacher = models[0].signals(batch, [1]), models[1].signals(batch, [2])

    def matching(student: Signals, teacher: Signals, temperature: float) -> float:
        config = MatchingConfig(temperature=temperature)
        return make_objective(LossConfig(matching=config))(student, teacher, batch, 0.5).terms["matching"]

    def cooled(signals: Signals) -> Signals:
        layers = {layer: dataclasses.replace(each, q_BHTD=each.q_BHTD / 4) for layer, each in signals.layers.items()}
        return dataclasses.replace(signals, layers=layers)

    hot = matching(student, teacher, 4.0)
    assert hot == pytest.approx(16 * matching(cooled(student), cooled(teacher), 1.0), rel=1e-5)
    assert hot != pytest.approx(matching(student, teacher, 1.0), rel=1e-2)


def test_the_recipe_says_what_computes_the_matching(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    student, teacher = models[0].signals(batch, [1]), models[1].signals(batch, [2])
    objective = make_objective(
        LossConfig(alignment=AlignmentConfig(weight=0.0), matching=MatchingConfig(kernel="triton"))
    )
    with pytest.raises(
        ValueError, match=r"loss.matching.kernel: 'triton' (cannot take tensors on cpu|is not installed)"
    ):
        objective(student, teacher, batch, 0.0)


def test_layers_count_from_the_end() -> None:
    pairs = (LayerPair(student=0, teacher=1), LayerPair(student=-1, teacher=-1))
    objective = make_objective(LossConfig(matching=MatchingConfig(layers=pairs)))
    assert objective.student_layers == {0, 1}
    assert objective.teacher_layers == {1, 2}
    assert len(objective.map_mixing) == 2


def test_a_layer_that_does_not_exist_is_refused() -> None:
    config = LossConfig(matching=MatchingConfig(layers=(LayerPair(), LayerPair(teacher=3))))
    with pytest.raises(ValueError, match=r"loss.matching.layers\[1\].teacher: 3, expected -3 to 2"):
        make_objective(config)


def test_unequal_head_counts_need_mixing() -> None:
    with pytest.raises(ValueError, match=r"loss.matching.mixing: 'none' with 2 student and 4 teacher heads"):
        make_objective(LossConfig(matching=MatchingConfig(mixing="none")))


def test_chosen_heads_are_matched_and_no_others(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    student, teacher = models[0].signals(batch, [1]), models[1].signals(batch, [2])
    layer = teacher.layers[2]
    no_alignment = AlignmentConfig(weight=0.0)
    heads = (HeadPair(student=1, teacher=3), HeadPair(student=0, teacher=2))
    chosen = make_objective(
        LossConfig(alignment=no_alignment, matching=MatchingConfig(mixing="none", heads=heads, gamma_max=2.0))
    )
    # The same by a teacher that has no other heads: 2 and 3 are those of its second key head.
    plain = Objective(
        LossConfig(alignment=no_alignment, matching=MatchingConfig(mixing="none", gamma_max=2.0)),
        student=STUDENT,
        teacher=dataclasses.replace(TEACHER, num_heads=2, num_key_value_heads=1),
        vocabulary_size=300,
    )
    small = dataclasses.replace(layer, q_BHTD=layer.q_BHTD[:, 2:], k_BKTD=layer.k_BKTD[:, 1:])

    found = chosen(student, teacher, batch, 0.5).terms["matching"]

    assert not list(chosen.parameters())
    expected = plain(student, dataclasses.replace(teacher, layers={2: small}), batch, 0.5).terms["matching"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_head_that_does_not_exist_is_refused() -> None:
    config = MatchingConfig(mixing="none", heads=(HeadPair(student=2, teacher=0),))
    with pytest.raises(ValueError, match=r"loss.matching.heads\[0\].student: 2, expected 0 to 1"):
        make_objective(LossConfig(matching=config))


def test_chosen_heads_are_not_mixed() -> None:
    with pytest.raises(ValueError, match=r"mixing: 'softmax' with heads, expected 'none'"):
        MatchingConfig(heads=(HeadPair(student=0, teacher=0),))


def test_unequal_head_sizes_are_refused_for_the_alignment_only() -> None:
    wide = dataclasses.replace(TEACHER, head_size=32)
    with pytest.raises(ValueError, match=r"heads of 16 .student. and 32 .teacher., expected equal head sizes"):
        Objective(LossConfig(), student=STUDENT, teacher=wide, vocabulary_size=300)
    without = LossConfig(alignment=AlignmentConfig(weight=0.0))
    assert Objective(without, student=STUDENT, teacher=wide, vocabulary_size=300).student_layers == {1}


def test_cutting_the_vocabulary_reaches_the_kl(models: tuple[SignalModel, Teacher], batch: Batch) -> None:
    student, teacher = models[0].signals(batch, []), models[1].signals(batch, [])
    size = student.logits_NV.shape[-1]
    config = LossConfig(lambda_laid=0.0, lambda_sft=0.0)
    padded = dataclasses.replace(teacher, logits_NV=torch.nn.functional.pad(teacher.logits_NV, (0, 64), value=9.0))
    plain = make_objective(config, size)(student, teacher, batch, 0.0).terms["kl"]
    assert make_objective(config, size)(student, padded, batch, 0.0).terms["kl"] == plain
