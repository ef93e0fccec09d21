"""What torch's caching allocator for CUDA makes of a run: how much it reserves, and on how little it still gets through.

Its rules, from c10/cuda/CUDACachingAllocator.cpp with the default settings: sizes are rounded to 512 bytes; up to 1 MiB comes
from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, and more from segments of its own size rounded to 2 MiB. The
smallest free block that is large enough is taken, and split if what remains is worth it. Freed blocks merge with free
neighbours in their segment. Where the device has no more, all segments that are wholly free are given back, then it tries
again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from t2vcli.engine.estimate.tracker import Allocation

UNIT = 512
SMALL_REQUEST = 1 << 20
SMALL_SEGMENT = 2 << 20
MEDIUM_REQUEST = 10 << 20
MEDIUM_SEGMENT = 20 << 20
SEGMENT_UNIT = 2 << 20

Request = tuple[int, int, bool]
"""+n: block n is asked for; -n: it is given back. Its bytes. Whether the program goes on without it."""


class _Block:
    __slots__ = ("address", "after", "before", "free", "size", "small")

    def __init__(self, address: int, size: int, small: bool) -> None:
        self.address = address
        self.size = size
        self.small = small
        self.free = True
        self.before: _Block | None = None  # neighbours in the segment
        self.after: _Block | None = None


class CachingAllocator:
    """The state of the allocator on a device with `capacity` bytes (None: endless)."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.reserved = 0
        self.most_reserved = 0
        self._pools: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # small and large: (size, address)
        self._free: dict[int, _Block] = {}  # by address
        self._end = 0  # segments are laid out one behind the other, with gaps, so that blocks of two never touch

    def take(self, nbytes: int) -> _Block | None:
        """Returns a block of at least `nbytes`, or None where there is none."""
        size = max(UNIT, -(-nbytes // UNIT) * UNIT)
        small = size <= SMALL_REQUEST
        pool = self._pools[0 if small else 1]
        place = bisect_left(pool, (size, -1))
        if place < len(pool):
            block = self._free.pop(pool.pop(place)[1])
        else:
            made = self._segment(size, small)
            if made is None:
                return None
            block = made
        block.free = False
        rest = block.size - size
        if rest >= UNIT if small else rest > SMALL_REQUEST:
            self._split(block, size)
        return block

    def give_back(self, block: _Block) -> None:
        """Takes a block back, merged with its free neighbours."""
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._unlist(neighbour)
                if neighbour is block.before:
                    block.address = neighbour.address
                    block.before = neighbour.before
                    if block.before is not None:
                        block.before.after = block
                else:
                    block.after = neighbour.after
                    if block.after is not None:
                        block.after.before = block
                block.size += neighbour.size
        self._list(block)

    def release_cached(self) -> None:
        """Gives the segments that are wholly free back to the device."""
        for block in list(self._free.values()):
            if block.before is None and block.after is None:
                self._unlist(block)
                self.reserved -= block.size

    def _segment(self, size: int, small: bool) -> _Block | None:
        if small:
            length = SMALL_SEGMENT
        elif size < MEDIUM_REQUEST:
            length = MEDIUM_SEGMENT
        else:
            length = -(-size // SEGMENT_UNIT) * SEGMENT_UNIT
        if self.capacity is not None and self.reserved + length > self.capacity:
            self.release_cached()
            if self.reserved + length > self.capacity:
                return None
        self.reserved += length
        self.most_reserved = max(self.most_reserved, self.reserved)
        block = _Block(self._end, length, small)
        self._end += length + UNIT
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.address + size, block.size - size, block.small)
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after = rest
        block.size = size
        self._list(rest)

    def _list(self, block: _Block) -> None:
        block.free = True
        self._free[block.address] = block
        insort(self._pools[0 if block.small else 1], (block.size, block.address))

    def _unlist(self, block: _Block) -> None:
        pool = self._pools[0 if block.small else 1]
        del pool[bisect_left(pool, (block.size, block.address))]
        del self._free[block.address]


@dataclass(frozen=True)
class Footprint:
    """What a run takes of a device: reserved without a limit, and the least capacity on which it gets through."""

    reserved_bytes: int
    least_bytes: int


def requests(events: Iterable[tuple[int, Allocation]]) -> list[Request]:
    """Returns what a trace's events on one device ask of the allocator."""
    return [(event, block.nbytes, block.kind == "workspace") for event, block in events]


def replay(asked: Sequence[Request], capacity: int | None = None) -> int | None:
    """Returns the most bytes reserved at any moment of a run, or None if it does not get through on `capacity`."""
    allocator = CachingAllocator(capacity)
    held: dict[int, _Block] = {}
    for event, nbytes, optional in asked:
        if event > 0:
            block = allocator.take(nbytes)
            if block is not None:
                held[event] = block
            elif not optional:
                return None
        else:
            block = held.pop(-event, None)
            if block is not None:
                allocator.give_back(block)
    return allocator.most_reserved


def footprint(asked: Sequence[Request]) -> Footprint:
    """Returns a run's footprint; the least capacity to half a percent, or to a page of 2 MiB if that is more."""
    reserved = replay(asked)
    assert reserved is not None, "without a limit everything fits"
    too_little, enough = 0, reserved
    alive = 0
    for event, nbytes, optional in asked:
        if not optional:
            alive += nbytes if event > 0 else -nbytes
            too_little = max(too_little, alive - SEGMENT_UNIT)
    while enough - too_little > max(SEGMENT_UNIT, enough // 200):
        middle = -(-(too_little + enough) // 2 // SEGMENT_UNIT) * SEGMENT_UNIT
        if middle >= enough:
            break
        if replay(asked, middle) is None:
            too_little = middle
        else:
            enough = middle
    return Footprint(reserved, enough)
