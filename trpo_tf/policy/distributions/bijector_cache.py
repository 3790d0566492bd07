"""The cache of TensorFlow Probability's bijectors, kept from holding our tensors."""

import contextlib
from collections.abc import Iterator

from tensorflow_probability import bijectors


@contextlib.contextmanager
def separate_cache() -> Iterator[None]:
    """What bijectors are called with here is forgotten at the end.

    All bijectors of a process share one cache of weak references. Each entry holds its input as long as its output
    lives. A symbolic tensor lives as long as its graph, and its graph as long as one of its tensors is held: every
    graph in which a bijector was ever called would stay, some MB each.
    """
    cache = vars(bijectors.Bijector)["_cache"]  # TensorFlow Probability has no public name for it
    shared, cache.storage = cache.storage, type(cache.storage)()
    try:
        yield
    finally:
        cache.storage = shared
