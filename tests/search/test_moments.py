"""Moments of a stream against NumPy's of all of it."""

import numpy as np

from trpo_tf.search.moments import StreamMoments, merged, of_samples


def test_they_are_those_of_all_masked_vectors_together():
    rng = np.random.default_rng(0)
    x, masks = rng.normal(1e6, [1, 2, 3], (200, 5, 3)), rng.random((200, 5)) < 0.5
    masks[:70] = False  # longer than what is put together
    stream = StreamMoments(3)
    for vectors, mask in zip(x, masks, strict=True):
        stream.add(vectors, mask)
    count, mean, m2 = stream.get()
    assert count == masks.sum()
    np.testing.assert_allclose(mean, x[masks].mean(0), rtol=1e-14)
    np.testing.assert_allclose(m2 / count, x[masks].var(0), rtol=1e-9)


def test_nothing_and_something_is_something():
    nothing, some = StreamMoments(2).get(), of_samples(np.array([[1.0, 2.0], [3.0, 6.0]]))
    for both in (merged(nothing, some), merged(some, nothing)):
        np.testing.assert_array_equal(both[0], 2)
        np.testing.assert_array_equal(both[1], [2, 4])
        np.testing.assert_array_equal(both[2], [2, 8])
    assert merged(nothing, nothing)[0] == 0
