"""Makes the next step's inputs while this step trains."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def prefetched(make: Callable[[int], Made], steps: range) -> Generator[Made]:
    """Yields `make(step)` of each step in order, the next one being made in a second thread meanwhile.

    The values are those of a plain loop if `make` depends on its argument alone. Close the iterator to wait for what
    is still being made; an error of `make` is raised where its value is due.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:
        coming: Future[Made] | None = None
        for step in steps:
            following = executor.submit(make, step)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
