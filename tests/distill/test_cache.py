from distill.cache import ByteCache


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: ByteCache[str, int] = ByteCache(100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1
    cache.put("c", 3, 40)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_a_value_larger_than_the_cache_is_not_kept() -> None:
    cache: ByteCache[str, int] = ByteCache(100)
    cache.put("a", 1, 101)
    assert cache.get("a") is None
    cache.put("b", 2, 100)
    assert cache.get("b") == 2
