"""A bounded cache of blocks of objects, in memory; several threads fetch a block once."""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Hashable
from concurrent.futures import Future
import os
import threading

_TOGETHER = 8  # blocks in one request at most: what is lost when a connection breaks

Fetch = Callable[[int, int], bytes]


class Blocks:
  """Reads ranges through blocks that are kept.

  Args:
    block_bytes: of a block. cache_bytes: kept at most; the longest unused go first.
  """

  def __init__(self, block_bytes: int, cache_bytes: int):
    self._block, self._most = block_bytes, cache_bytes
    self._held: OrderedDict[tuple[Hashable, int], Future[bytes]] = OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()
    os.register_at_fork(after_in_child=self._renew)

  def _renew(self) -> None:
    """A child that was forked has not the threads that were fetching."""
    self._lock, self._bytes = threading.Lock(), 0
    self._held.clear()

  def read(self, name: Hashable, size: int, first: int, end: int, fetch: Fetch) -> bytes:
    """The bytes [first, end) of an object.

    Args:
      name: of the object in the state that it is in. size: of the object, bytes.
      first, end: 0 <= first < end <= size.
      fetch: gives the bytes [a, b) of it.

    Raises:
      What `fetch` raises; nothing is kept of it.
    """
    numbers = range(first // self._block, (end - 1) // self._block + 1)
    mine: list[int] = []
    blocks: dict[int, Future[bytes]] = {}
    with self._lock:
      for number in numbers:
        future = self._held.get((name, number))
        if future is None:
          future = self._held[name, number] = Future()
          mine.append(number)
        self._held.move_to_end((name, number))
        blocks[number] = future
    self._fetch(name, size, mine, blocks, fetch)
    data = b"".join(blocks[number].result() for number in numbers)
    start = first - numbers[0] * self._block
    return data[start : start + end - first]

  def _fetch(
    self,
    name: Hashable,
    size: int,
    mine: list[int],
    blocks: dict[int, Future[bytes]],
    fetch: Fetch,
  ) -> None:
    """Fetches blocks, those that lie together at once; all are filled, or given up, at the end."""
    at = 0
    try:
      while at < len(mine):
        stop = at + 1
        while stop < len(mine) and mine[stop] == mine[stop - 1] + 1 and stop - at < _TOGETHER:
          stop += 1
        offset = mine[at] * self._block
        data = fetch(offset, min((mine[stop - 1] + 1) * self._block, size))
        for number in mine[at:stop]:
          begin = number * self._block - offset
          blocks[number].set_result(data[begin : begin + self._block])
        at = stop
        self._keep(len(data))
    except BaseException as error:
      with self._lock:
        for number in mine[at:]:
          self._held.pop((name, number), None)
      for number in mine[at:]:
        blocks[number].set_exception(error)
      raise

  def _keep(self, more: int) -> None:
    """Counts bytes as kept; drops the longest unused that were fetched, down to the bound."""
    with self._lock:
      self._bytes += more
      for key in list(self._held):
        if self._bytes <= self._most:
          return
        if self._held[key].done():
          self._bytes -= len(self._held.pop(key).result())
