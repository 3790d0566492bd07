"""Named points of a run at which tests interrupt it; elsewhere nothing happens at them."""

from collections.abc import Callable

POINTS = (
    "collect", "learn", "value_fit", "policy_step", "commit", "renew", "evaluate", "write_row", "save_arrays",
    "save_manifest", "save_rename", "saved", "export",
)  # fmt: skip

hook: Callable[[str], None] | None = None  # called with the name of every point that is reached


def point(name: str) -> None:
    """Says that a run is here; one of POINTS."""
    if hook is not None:
        hook(name)
