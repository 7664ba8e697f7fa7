"""Working ahead in threads without changing the order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield `work(item)` for each item in order, while threads work on the ones that follow.

    At most two results a thread are waiting to be taken. An error of `work` is raised where its result would be; what
    was begun after it is finished and dropped, and so it is if the caller stops early.

    Args:
        work: called in threads; in the caller's own if `threads` is 0.
        items: taken one by one.
        threads: how many work at a time.
    """
    if not threads:
        yield from map(work, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="limbeck ahead") as pool:
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(items, 2 * threads))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, item) for item in islice(items, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
