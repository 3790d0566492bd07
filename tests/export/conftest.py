"""The policies and servers that the tests of this directory share."""

from tests.served import address, base, exported  # noqa: F401
