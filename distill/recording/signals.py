"""A batch's signals cut into samples, and put together again."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.losses.top_logits import TopLogits, take_top_logits
from distill.recording.manifest import LogitRecord, Manifest
from distill.recording.needs import LayerNeed
from distill.signals import QueryKey, Signals

Tensors = Mapping[str, Tensor]
"""One sample's: q.LAYER [H, rows, D], k.LAYER [K, rows, D], scale.LAYER [], and on the N answer rows either logits
[N, V] or log_p [N, k], token [N, k] and log_rest [N]."""


def cut(signals: Signals, batch: Batch, samples: Sequence[int], manifest: Manifest) -> list[dict[str, Tensor]]:
    """What is recorded of these samples, on the CPU."""
    dtype = getattr(torch, manifest.dtype)
    tensors: dict[int, dict[str, Tensor]] = {sample: {} for sample in samples}
    for layer, need in manifest.layers.items():
        layer_signals = signals.layers[layer]
        query_rows, key_rows = _row_indices(batch, need)
        queries, keys = batch.by_sample(layer_signals.q_BHTD), batch.by_sample(layer_signals.k_BKTD)
        for sample, values in tensors.items():
            values[f"q.{layer}"] = queries[sample][:, query_rows[sample]].to("cpu", dtype)
            values[f"k.{layer}"] = keys[sample][:, key_rows[sample]].to("cpu", dtype)
            values[f"scale.{layer}"] = torch.tensor(layer_signals.scale, dtype=torch.float64)
    if manifest.logits is not None:
        pieces = _cut_logits(signals.logits_NV, batch, manifest.logits)
        for sample, values in tensors.items():
            values.update(pieces[sample])
    return [tensors[sample] for sample in samples]


def _cut_logits(logits_NV: Tensor, batch: Batch, record: LogitRecord) -> list[dict[str, Tensor]]:
    counts = batch.answer_BT.sum(dim=1).tolist()
    if record.top_k is None:
        # As the teacher gave them: nothing is lost at any temperature. A copy, since a view would be saved whole.
        cut_NV = logits_NV[:, : record.vocabulary_size].cpu()
        return [{"logits": piece_NV.clone()} for piece_NV in torch.split(cut_NV, counts)]
    top = take_top_logits(
        logits_NV, k=record.top_k, temperature=record.temperature, vocabulary_size=record.vocabulary_size
    )
    columns = top.log_p_NK.cpu(), top.token_NK.cpu().int(), top.log_rest_N.cpu()
    pieces = zip(*(torch.split(column, counts) for column in columns), strict=True)
    return [{"log_p": a.clone(), "token": b.clone(), "log_rest": c.clone()} for a, b, c in pieces]


def join_layer(samples: Sequence[Tensors], batch: Batch, layer: int, need: LayerNeed) -> QueryKey:
    """One layer's queries and keys on the batch's device; 0 at rows that no loss looks at."""
    query_rows, key_rows = _row_indices(batch, need)
    return QueryKey(
        q_BHTD=_join_rows([values[f"q.{layer}"] for values in samples], batch, query_rows),
        k_BKTD=_join_rows([values[f"k.{layer}"] for values in samples], batch, key_rows),
        scale=samples[0][f"scale.{layer}"].item(),
    )


def join_logits(samples: Sequence[Tensors], batch: Batch) -> Tensor:
    """Full logits, [N, V], on the batch's device."""
    return torch.cat([values["logits"] for values in samples]).to(batch.input_ids_BT.device)


def join_top_logits(samples: Sequence[Tensors], batch: Batch, temperature: float) -> TopLogits:
    """The tops of the softmax on all answer rows, on the batch's device."""
    device = batch.input_ids_BT.device
    columns = [torch.cat([values[name] for values in samples]).to(device) for name in ("log_p", "token", "log_rest")]
    return TopLogits(log_p_NK=columns[0], token_NK=columns[1].long(), log_rest_N=columns[2], temperature=temperature)


def _join_rows(pieces_HRD: Sequence[Tensor], batch: Batch, rows: Sequence[Tensor]) -> Tensor:
    first = pieces_HRD[0]
    num_rows, num_tokens = batch.model_inputs.input_ids_BT.shape
    joined_BHTD = torch.zeros(
        (num_rows, first.shape[0], num_tokens, first.shape[2]), dtype=first.dtype, device=batch.input_ids_BT.device
    )
    for sample_HTD, piece_HRD, index_R in zip(batch.by_sample(joined_BHTD), pieces_HRD, rows, strict=True):
        sample_HTD[:, index_R] = piece_HRD.to(joined_BHTD.device)
    return joined_BHTD


def _row_indices(batch: Batch, need: LayerNeed) -> tuple[list[Tensor], list[Tensor]]:
    """For each sample the tokens whose queries, and those whose keys are recorded."""
    wanted = [batch.rows(kind) for kind in (need.query_rows, need.key_rows)]
    queries, keys = (
        [index_R[valid_R] for index_R, valid_R in zip(rows.index_BR, rows.valid_BR, strict=True)] for rows in wanted
    )
    return queries, keys
