"""A batch as the losses on queries and keys take it: all samples at once where padded, one at a time where packed."""

from collections.abc import Iterator
from dataclasses import dataclass

from distill.data.batch import Batch
from distill.losses.rows import Places, Rows
from distill.signals import QueryKey


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One layer of both models, with the rows and the places that belong to it."""

    student: QueryKey
    teacher: QueryKey
    rows: Rows
    places: Places
    share: float
    """Of the batch's rows; a mean over the batch is the sum of the pieces' means times their shares."""


def pieces_of(batch: Batch, rows: Rows, student: QueryKey, teacher: QueryKey) -> Iterator[Piece]:
    """One piece of padded samples; of packed ones a piece each, without those that have no row."""
    if not batch.is_packed:
        yield Piece(student=student, teacher=teacher, rows=rows, places=batch.places, share=1.0)
        return
    counts = rows.valid_BR.sum(dim=1).tolist()
    layers = zip(student.split(batch.lengths), teacher.split(batch.lengths), strict=True)
    for sample, (ours, theirs) in enumerate(layers):
        if counts[sample] > 0:
            yield Piece(
                student=ours,
                teacher=theirs,
                rows=rows.of_sample(sample),
                places=batch.places.of_sample(sample, batch.lengths[sample]),
                share=counts[sample] / sum(counts),
            )
