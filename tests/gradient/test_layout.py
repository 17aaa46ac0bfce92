import math

from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.gradient.layout import build_buckets


def sizes(shapes, bucket_elements=4000, dense_below=100):
    buckets, small = build_buckets(shapes, bucket_elements, dense_below)
    return [bucket.size for bucket in buckets], small.size


def layers(count, rows=1000):
    return {f"layer{i}": (rows, 1) for i in range(count)}


def test_the_buckets_at_both_ends_are_small_and_the_others_full():
    assert sizes(layers(25)) == ([1000, 3000, 4000, 4000, 4000, 4000, 4000, 1000], 0)


def test_one_element_of_room_makes_every_tensor_a_bucket():
    assert sizes(layers(5), bucket_elements=1) == ([1000] * 5, 0)


def test_a_tensor_larger_than_a_bucket_is_not_cut():
    assert sizes({"a": (9000, 1), "b": (100, 2), "c": (9000, 1)}) == ([9000, 200, 9000], 0)


def test_a_model_without_large_tensors_has_no_bucket():
    assert sizes({"bias": (5000,), "tiny": (9, 9)}) == ([], 5081)


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=3), max_size=30),
    st.integers(1, 5000),
    st.integers(0, 200),
)
def test_every_tensor_has_one_place_and_buckets_keep_to_their_room(drawn, bucket_elements, dense_below):
    shapes = {f"p{i}": tuple(shape) for i, shape in enumerate(drawn)}
    buckets, small = build_buckets(shapes, bucket_elements, dense_below)
    names = [name for bucket in buckets for name in bucket.names]
    assert names == [name for name in shapes if name not in small.names]
    assert list(small.names) == [n for n, s in shapes.items() if len(s) < 2 or math.prod(s) < dense_below]
    for number, bucket in enumerate(buckets):
        room = bucket_elements // 4 if number in (0, len(buckets) - 1) else bucket_elements
        assert bucket.size <= room or len(bucket.names) == 1
        assert bucket.starts == tuple(sum(math.prod(s) for s in bucket.shapes[:i]) for i in range(len(bucket.shapes)))
