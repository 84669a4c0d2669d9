import pytest

from distill.recipe import AlignmentConfig, LayerPair, LossConfig, MatchingConfig
from distill.recording.needs import LayerNeed, needed_layers


def loss(alignment: AlignmentConfig, matching: MatchingConfig) -> LossConfig:
    return LossConfig(alignment=alignment, matching=matching)


def test_the_matching_needs_all_keys_and_the_alignment_only_its_rows() -> None:
    needs = needed_layers(
        loss(
            AlignmentConfig(rows="question", layers=(LayerPair(teacher=0), LayerPair(teacher=-1))),
            MatchingConfig(rows="answer", layers=(LayerPair(teacher=1), LayerPair(teacher=2))),
        ),
        num_layers=3,
    )
    assert needs == {
        0: LayerNeed(query_rows="question", key_rows="question"),
        1: LayerNeed(query_rows="answer", key_rows="all"),
        2: LayerNeed(query_rows="question", key_rows="all"),
    }


def test_a_loss_without_weight_needs_nothing() -> None:
    assert not needed_layers(loss(AlignmentConfig(weight=0), MatchingConfig(weight=0)), num_layers=3)
    assert not needed_layers(LossConfig(lambda_laid=0), num_layers=3)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    config = loss(AlignmentConfig(), MatchingConfig(layers=(LayerPair(), LayerPair(teacher=3))))
    with pytest.raises(ValueError, match=r"loss.matching.layers\[1\].teacher: 3, expected -3 to 2"):
        needed_layers(config, num_layers=3)


def test_more_rows_serve_fewer() -> None:
    wide, narrow = LayerNeed(query_rows="question", key_rows="all"), LayerNeed(query_rows="answer", key_rows="question")
    assert wide.covers(narrow)
    assert wide.covers(wide)
    assert not narrow.covers(wide)
    assert not narrow.covers(LayerNeed(query_rows="answer", key_rows="all"))
