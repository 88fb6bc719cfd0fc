"""CUDA graphs: an execution recorded once for its shapes and addresses, and repeated by a single launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from planish.errors import PlanishError
from planish.runtime.cuda import Cuda

__all__ = ["Replays"]

_SEEN = 64  # keys remembered to tell a shape that comes back from one that came once


class Replays:
    """At most ``limit`` graphs, the least recently used one goes first; 0 is none.

    A key's first run is a plain one: shapes that come once are not worth a graph. The second runs in a context of its
    own, which is also TensorRT's warm-up, and is then recorded; later ones are only launched. The context stays with
    its graph, unchanged, as TensorRT's guide on CUDA graphs asks.
    """

    def __init__(self, cuda: Cuda, limit: int) -> None:
        self.limit = limit
        self.launches = 0
        self._cuda = cuda
        self._graphs: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self,
        key: Hashable,
        stream: int,
        plain: Callable[[], None],
        dedicated: Callable[[], tuple[Any, Callable[[], None]]],
    ) -> None:
        """Enqueues ``plain()``, or a graph of it.

        ``dedicated()`` makes a context ready for this key, and returns it with what enqueues an execution in it.
        """
        if self.limit and key in self._graphs:
            self._graphs.move_to_end(key)
            self._cuda.launch(self._graphs[key][0], stream)
            self.launches += 1
        elif self.limit and key in self._seen:
            context, enqueue = dedicated()
            enqueue()
            self._record(key, stream, context, enqueue)
        else:
            self._remember(key)
            plain()

    def _record(self, key: Hashable, stream: int, context: Any, enqueue: Callable[[], None]) -> None:
        """Records one more execution; an engine whose work cannot be recorded is not asked again."""
        while len(self._graphs) >= self.limit:
            self._cuda.destroy_graph(self._graphs.popitem(last=False)[1][0])
        self._cuda.begin_capture(stream)
        try:
            enqueue()
            self._graphs[key] = self._cuda.end_capture(stream), context
        except BaseException as error:
            self._cuda.abandon_capture(stream)
            self.limit = 0
            if not isinstance(error, PlanishError):
                raise

    def _remember(self, key: Hashable) -> None:
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)

    def forget(self) -> None:
        """Frees all graphs: an address they were recorded with is no longer ours."""
        self._seen.clear()
        while self._graphs:
            self._cuda.destroy_graph(self._graphs.popitem()[1][0])
