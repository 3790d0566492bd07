"""What starts workers and talks to them: a protocol with one implementation on Ray, and doubles in tests."""

from typing import Any, NamedTuple, Protocol

BEGIN = 0  # the ticket of a worker's start


class Trouble(NamedTuple):
    """What a worker raised."""

    kind: str  # "usage", "environment", or "" for anything else
    message: str  # one line


class Reply(NamedTuple):
    """What a worker answers."""

    value: Any
    said: tuple[str, ...] = ()  # warnings
    trouble: Trouble | None = None  # then there is no value


class Answer(NamedTuple):
    """A reply has arrived."""

    slot: int
    serial: int  # of the worker that answers
    ticket: int  # of what it was asked; BEGIN: it is ready
    reply: Reply


class Death(NamedTuple):
    """A worker is gone, and with it whatever it was asked."""

    slot: int
    serial: int
    message: str  # one line


class Fleet(Protocol):
    """Workers by slot. All calls but `share` and `tell` come from one thread.

    A worker that dies is never started again by the fleet itself, and no call is made twice: what a dead worker had
    collected would be collected again, bit for bit, and learned from twice.
    """

    def start(self, slot: int, serial: int) -> None:
        """Begins a worker in place of the slot's last one; an Answer to BEGIN follows when it is ready."""

    def send(self, slot: int, ticket: int, method: str, *args: Any) -> None:
        """Calls a method of the slot's worker; an Answer with the ticket, or a Death, follows, or nothing ever."""

    def tell(self, slot: int, method: str, *args: Any) -> None:
        """Calls a method of the slot's worker beside whatever it does. Nothing ever follows.

        Nothing is done where the worker is not there, or has not done what it was told last.
        """

    def share(self, value: Any) -> Any:
        """Puts a value where every worker can read it; what is returned may be an argument of `send` and `tell`."""

    def wait(self, seconds: float) -> list[Answer | Death]:
        """What has happened, after so many seconds at most."""
        ...

    def kill(self, slot: int) -> None:
        """Ends the slot's worker, whatever it does; nothing of it arrives any more."""

    def close(self) -> None:
        """Ends all workers."""
