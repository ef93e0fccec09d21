"""The caching allocator's rules, on short lists of requests worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from t2vcli.engine.estimate.allocator import CachingAllocator, Footprint, Request, footprint, replay

MIB = 1 << 20


def asked(*sizes: float) -> list[Request]:
    """Returns requests: a positive number of MiB is block 1, 2, ... in order; a negative whole number gives one back."""
    made: list[Request] = []
    sizes_of: list[int] = []
    for size in sizes:
        if size > 0:
            sizes_of.append(int(size * MIB))
            made.append((len(sizes_of), sizes_of[-1], False))
        else:
            made.append((int(size), sizes_of[int(-size) - 1], False))
    return made


@pytest.mark.parametrize(
    ("requests", "reserved_mib"),
    [
        (asked(0.001), 2),  # small ones from a segment of 2
        (asked(1), 2),
        (asked(1, 1), 2),  # two of them fill it
        (asked(1, 1, 0.001), 4),
        (asked(1.001), 20),  # larger ones from a segment of 20
        (asked(9.5, 9.5), 20),
        (asked(9.5, 9.5, 1.5), 40),  # 1 left: not enough, and never given to large ones
        (asked(10), 10),  # from 10 on each its own, in steps of 2
        (asked(10.5), 12),
        (asked(30, -1, 12), 30),  # split: 18 are left
        (asked(30, -1, 12, 18), 30),
        (asked(30, -1, 12, 18.5), 50),
        (asked(30, -1, 29.5, 0.4), 32),  # a rest of up to 1 is not split off, and a large segment serves no small ones
        (asked(40, -1, 12, 12, 16, -2, -4, 24), 64),  # 12 and 16 are free but not neighbours
        (asked(40, -1, 12, 12, 16, -2, -3, 24), 40),  # 12 and 12 merge
        (asked(40, -1, 12, 12, 16, -4, -3, 28), 40),  # also with the one behind
        (asked(40, 20, -1, -2, 16, 30), 60),  # best fit: 16 go into the 20, so that 30 find the 40
    ],
)
def test_reserved_memory(requests: Sequence[Request], reserved_mib: int) -> None:
    assert replay(requests) == reserved_mib * MIB


def test_sizes_are_rounded_up_to_512_bytes() -> None:
    allocator = CachingAllocator()
    assert [allocator.take(size).size for size in (1, 512, 513)] == [512, 512, 1024]  # type: ignore[union-attr]


def test_cached_segments_are_given_back_where_the_device_is_full() -> None:
    requests = asked(20, -1, 30)
    assert replay(requests) == 50 * MIB
    assert replay(requests, 30 * MIB) == 30 * MIB
    assert replay(requests, 28 * MIB) is None
    # A segment with a live block in it cannot be given back.
    assert replay(asked(20, -1, 4, 30), 48 * MIB) is None
    assert replay(asked(20, -1, 4, 30), 50 * MIB) == 50 * MIB


def test_a_workspace_that_does_not_fit_is_done_without() -> None:
    with_workspace: list[Request] = [
        (1, 20 * MIB, False),
        (2, 10 * MIB, True),
        (-2, 10 * MIB, True),
        (3, 4 * MIB, False),
    ]
    assert replay(with_workspace) == 30 * MIB  # the 4 fit into what the workspace left
    assert replay(with_workspace, 40 * MIB) == 30 * MIB
    assert replay(with_workspace, 28 * MIB) is None  # without the workspace the 4 need a segment of 20
    assert replay(asked(20, 10), 28 * MIB) is None


def test_the_least_capacity_is_the_least_that_gets_through() -> None:
    requests = asked(20, -1, 30)
    found = footprint(requests)
    assert found == Footprint(reserved_bytes=50 * MIB, least_bytes=30 * MIB)
    assert replay(requests, found.least_bytes - 2 * MIB) is None


def test_nothing_asked_needs_nothing() -> None:
    assert footprint([]) == Footprint(0, 0)
