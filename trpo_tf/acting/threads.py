"""How many threads NumPy multiplies in."""

import functools

import threadpoolctl


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")  # looks through all loaded libraries: slow


def single_threaded():
    """A context in which NumPy multiplies in the calling thread, and the cores are left to the environments."""
    return _blas().limit(limits=1)
