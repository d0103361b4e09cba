"""Embeddings are kept by content, within a bound in bytes, and computed once."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsa.segmenter import ContentCache


@given(
    max_bytes=st.integers(0, 400),
    requests=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60),
)
def test_the_bound_in_bytes_is_never_exceeded(max_bytes: int, requests: list[tuple[int, int]]) -> None:
    cache = ContentCache(max_bytes)
    sizes: dict[int, int] = {}
    for key, size in requests:
        size = sizes.setdefault(key, size)
        value, _ = cache.get(key, lambda size=size: torch.zeros(size))
        assert value.numel() == size
        held = sum(4 * sizes[key] for key in sizes if key in cache)
        assert cache.nbytes == held <= max_bytes


def test_the_least_recently_used_embedding_goes_first() -> None:
    cache = ContentCache(8)
    for key in "abac":
        cache.get(key, lambda: torch.zeros(1))
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)


def test_two_requests_for_one_key_compute_it_once() -> None:
    cache, made, entered = ContentCache(1000), [], threading.Barrier(4)

    def make() -> torch.Tensor:
        time.sleep(0.05)
        made.append(1)
        return torch.ones(3)

    found: list[bool] = []

    def request() -> None:
        entered.wait()
        found.append(cache.get("key", make)[1])

    threads = [threading.Thread(target=request) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(found) == [False, True, True, True]


def test_a_failure_is_not_remembered_and_does_not_reach_those_who_waited() -> None:
    cache, working, waiting = ContentCache(1000), threading.Event(), threading.Event()

    def fail() -> torch.Tensor:
        working.set()
        waiting.wait()
        time.sleep(0.05)
        raise RuntimeError("cancelled by its user")

    def wait_for_it() -> None:
        working.wait()
        waiting.set()
        values.append(cache.get("key", lambda: torch.ones(2))[0])

    values: list[torch.Tensor] = []
    other = threading.Thread(target=wait_for_it)
    other.start()
    with pytest.raises(RuntimeError, match="cancelled"):
        cache.get("key", fail)
    other.join()
    assert values[0].tolist() == [1, 1]
    assert "key" in cache


def test_an_embedding_larger_than_the_cache_is_answered_and_not_kept() -> None:
    cache = ContentCache(10)
    cache.get("small", lambda: torch.zeros(1))
    assert cache.get("large", lambda: torch.zeros(100))[0].numel() == 100
    assert "small" in cache
    assert "large" not in cache
