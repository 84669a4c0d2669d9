import dataclasses
from collections.abc import Sequence

import torch

from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.losses.rows import Rows
from distill.losses.top_logits import take_top_logits
from distill.model import Teacher
from distill.recording.manifest import LogitRecord, Manifest
from distill.recording.signals import cut, join_layer, join_logits, join_top_logits
from tests.distill.recording.samples import TEXT, make_sample


def at_rows(rows: Rows, x_BHTD: torch.Tensor) -> torch.Tensor:
    return rows.gather(x_BHTD) * rows.valid_BR[:, None, :, None]


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Another batch is summed in another order: what is small may be off by what is little of the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_whole_signals_come_back_bit_for_bit(teacher: Teacher, batch: Batch, manifest: Manifest) -> None:
    live = teacher.signals(batch, manifest.layers)
    samples = cut(live, batch, range(3), manifest)
    size = manifest.logits.vocabulary_size if manifest.logits else 0
    assert torch.equal(join_logits(samples, batch), live.logits_NV[:, :size])
    for layer, need in manifest.layers.items():
        joined = join_layer(samples, batch, layer, need)
        assert joined.scale == live.layers[layer].scale
        query_rows, key_rows = batch.rows(need.query_rows), batch.rows(need.key_rows)
        assert torch.equal(at_rows(query_rows, joined.q_BHTD), at_rows(query_rows, live.layers[layer].q_BHTD))
        assert torch.equal(at_rows(key_rows, joined.k_BKTD), at_rows(key_rows, live.layers[layer].k_BKTD))
        assert torch.count_nonzero(joined.q_BHTD) == torch.count_nonzero(at_rows(query_rows, joined.q_BHTD))


def test_samples_come_back_in_another_batch(
    teacher: Teacher, collate: Collator, batch: Batch, manifest: Manifest
) -> None:
    samples: Sequence[dict[str, torch.Tensor]] = cut(teacher.signals(batch, manifest.layers), batch, range(3), manifest)
    other = collate([make_sample(1), TEXT])
    live = teacher.signals(other, manifest.layers)
    chosen = [samples[2], samples[1]]
    assert_alike(join_logits(chosen, other), live.logits_NV[:, : manifest.logits.vocabulary_size])
    for layer, need in manifest.layers.items():
        rows = other.rows(need.query_rows)
        joined = join_layer(chosen, other, layer, need)
        assert_alike(at_rows(rows, joined.q_BHTD), at_rows(rows, live.layers[layer].q_BHTD))


def test_the_top_of_the_softmax_comes_back(teacher: Teacher, batch: Batch, manifest: Manifest) -> None:
    record = LogitRecord(top_k=5, temperature=2.0, vocabulary_size=300)
    live = teacher.signals(batch, manifest.layers)
    samples = cut(live, batch, range(3), dataclasses.replace(manifest, logits=record))
    top = join_top_logits(samples, batch, 2.0)
    expected = take_top_logits(live.logits_NV, k=5, temperature=2.0, vocabulary_size=300)
    assert torch.equal(top.log_p_NK, expected.log_p_NK)
    assert torch.equal(top.token_NK, expected.token_NK)
    assert torch.equal(top.log_rest_N, expected.log_rest_N)


def test_the_chosen_dtype_and_nothing_without_a_need(teacher: Teacher, batch: Batch, manifest: Manifest) -> None:
    live = teacher.signals(batch, manifest.layers)
    (values,) = cut(live, batch, [2], dataclasses.replace(manifest, dtype="bfloat16", logits=None))
    assert values.keys() == {"q.1", "k.1", "scale.1", "q.2", "k.2", "scale.2"}
    assert torch.equal(values["k.1"], live.layers[1].k_BKTD[2][:, batch.is_token_BT[2]].bfloat16())
