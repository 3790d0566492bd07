"""The metrics of one update."""

from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from typing import Any


class Row(MutableMapping[str, Any]):
    """Metrics by name; numbers, words, or None where there is nothing yet.

    The value fit runs beside what follows an update. Reading one of its metrics, or all of them, waits for its end.

    Args:
      metrics: what is known already.
      rest: gives the others.
    """

    __slots__ = ("_metrics", "_rest")  # a History holds many

    def __init__(self, metrics: dict[str, Any], rest: "Future[dict[str, Any]] | None" = None):
        self._metrics, self._rest = metrics, rest

    @property
    def complete(self) -> bool:
        """Whether reading waits for nothing."""
        return self._rest is None or self._rest.done()

    def _finish(self) -> dict[str, Any]:
        """All metrics.

        Raises:
          Exception: what the value fit ended with.
        """
        if self._rest is not None:
            rest, self._rest = self._rest, None
            self._metrics = self._metrics | {k: v for k, v in rest.result().items() if k not in self._metrics}
        return self._metrics

    def __getitem__(self, name: str) -> Any:
        return self._metrics[name] if name in self._metrics else self._finish()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._metrics[name] = value

    def __delitem__(self, name: str) -> None:
        del self._finish()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._finish())

    def __len__(self) -> int:
        return len(self._finish())

    def __repr__(self) -> str:
        return f"Row({dict(self)})"
