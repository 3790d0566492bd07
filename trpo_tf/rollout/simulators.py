"""What simulators in C and C++ hold, saved and put back to the bit: MuJoCo's data, ALE's emulator."""

import sys
from typing import Any, Protocol

import numpy as np


class Unsavable(Exception):
    """An environment cannot be put back to where it was; says why."""


class Simulator(Protocol):
    """A simulator that an environment holds."""

    def save(self) -> Any:
        """All that it holds; can be pickled."""

    def restore(self, saved: Any) -> None:
        """Puts it back to where it, or another one of the same model, was."""


def simulator(value: Any) -> Simulator | None:
    """What saves the simulator that a value is; None where it is none.

    Raises:
      Unsavable: it does not give out all that it holds.
    """
    mujoco = sys.modules.get("mujoco")  # not imported for environments that have none of it
    if mujoco is not None and isinstance(value, mujoco.MjData):
        return Physics(value)
    return Emulator(value) if (package(value), type(value).__name__) == ("ale_py", "ALEInterface") else None


def is_model(value: Any) -> bool:
    """Whether a value is MuJoCo's model, which does not change."""
    return package(value) == "mujoco" and type(value).__name__ == "MjModel"


def package(value: Any) -> str:
    """The package that the class of a value is from."""
    return type(value).__module__.partition(".")[0]


class Emulator:
    """ALE: the console with its random generator.

    Raises:
      Unsavable: it repeats actions by chance. Which one it would repeat is not in its state.
    """

    def __init__(self, ale: Any):
        if ale.getFloat("repeat_action_probability") > 0:
            raise Unsavable(
                "ALE does not give out the action that it repeats; with --env_options=repeat_action_probability=0 and "
                "--wrappers=StickyAction(0.25) a wrapper repeats it"
            )
        self._ale = ale

    def save(self) -> Any:
        """As Simulator says."""
        return self._ale.cloneState(include_rng=True)

    def restore(self, saved: Any) -> None:
        """As Simulator says.

        ALE up to 0.12.1 leaves out whether a frame has only begun, which in Q*bert and Tetris differs between a running
        game and one that was reset. A frame of the running game sets it. Reference: pull request 732 of ALE.
        """
        self._ale.restoreState(saved)
        self._ale.act(0)
        self._ale.restoreState(saved)


class Physics:
    """MuJoCo: all of mjData, not only what the next mj_step starts from.

    Environments look at derived quantities between steps: Humanoid's reward takes the centre of mass from positions of
    bodies that mj_step computed before its last integration, which mj_forward would not compute again.

    Args:
      data: an mjData.
    """

    def __init__(self, data: Any):
        self._mujoco = sys.modules["mujoco"]
        self._data, self._model = data, data.model
        self._spare: list[Any] = []  # an mjData takes a hundred times as long to make as to fill
        self._names = [name for name in dir(data) if name != "plugin_data" and _is_of_buffer(data, name)]
        self._which = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._size = self._mujoco.mj_stateSize(self._model, self._which)

    def save(self) -> "Snapshot":
        """As Simulator says."""
        data = self._spare.pop() if self._spare else self._mujoco.MjData(self._model)
        self._mujoco.mj_copyData(data, self._model, self._data)
        return Snapshot(self, data)

    def restore(self, saved: "Snapshot | Arrays") -> None:
        """As Simulator says."""
        if isinstance(saved, Snapshot):
            self._mujoco.mj_copyData(self._data, self._model, saved.data)
            return
        self._mujoco.mj_setState(self._model, self._data, saved.integration, self._which)
        first = 0
        for name in self._names:
            x = getattr(self._data, name)
            x[...] = np.frombuffer(saved.others, x.dtype, x.size, first).reshape(x.shape)
            first += x.nbytes

    def spare(self, data: Any) -> None:
        """Takes back the mjData of a Snapshot that nobody has any more."""
        self._spare.append(data)

    def arrays(self, data: Any) -> "Arrays":
        """What an mjData holds, as arrays."""
        integration = np.empty(self._size)
        self._mujoco.mj_getState(self._model, data, integration, self._which)
        return Arrays(integration, b"".join([getattr(data, name).tobytes() for name in self._names]))


class Snapshot:
    """A copy of mjData. Pickled, it becomes Arrays."""

    def __init__(self, physics: Physics, data: Any):
        self._physics, self.data = physics, data

    def __reduce__(self) -> tuple:
        arrays = self._physics.arrays(self.data)
        return Arrays, (arrays.integration, arrays.others)

    def __del__(self) -> None:
        self._physics.spare(self.data)


class Arrays:
    """What mjData holds but for the contacts and constraints, which mj_step finds anew before it uses them.

    A pickled mjData would have these, too, but also the model: half a megabyte, and milliseconds to unpickle.

    Args:
      integration: what mj_step starts from, by mj_getState.
      others: the arrays whose size does not change, derived quantities among them, one after the other.
    """

    def __init__(self, integration: np.ndarray, others: bytes):
        self.integration, self.others = integration, others


def _is_of_buffer(data: Any, name: str) -> bool:
    """Whether an attribute is an array whose size does not change; of the others, MuJoCo makes a view each time."""
    value = getattr(data, name) if not name.startswith("_") else None
    return isinstance(value, np.ndarray) and value.size > 0 and getattr(data, name) is value
