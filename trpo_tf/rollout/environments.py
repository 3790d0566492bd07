"""The environments of a run, made of an id, of a function that makes one, or given as a vector environment."""

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from trpo_tf.config.rooms import EnvironmentConfig
from trpo_tf.errors import Error, UsageError, first_line
from trpo_tf.messages import warn
from trpo_tf.rollout import env_state, exactness, options
from trpo_tf.rollout.backends import checks, envpool, gymnasium, processes, resolve, single_env
from trpo_tf.rollout.backends.base import Backend
from trpo_tf.rollout.backends.restarts import Household, Named
from trpo_tf.rollout.evaluation import LONGEST
from trpo_tf.rollout.vector_env import VectorEnv

# Options that decide how environments are driven, or that flags of their own set.
_OURS = {
    "batch_size", "env_type", "max_num_players", "num_envs", "num_threads", "render_mode", "seed",
    "thread_affinity_offset",
}  # fmt: skip


class Environments:
    """Makes the environments of a run.

    Args:
      config: which, and how they are stepped.
      env: None: the environment with the id config.env. Or a function that makes a gymnasium.Env each time it is
        called; or a vector environment of gymnasium, or of EnvPool, that steps config.num_envs environments with
        NEXT_STEP autoreset. A vector environment stays the caller's to close; as it cannot be made anew, a run that
        goes on from a checkpoint does not meet the same episodes again.
      eval_env: what policies are evaluated in, an id or a function; None: the same as `env`.

    Attributes:
      name: see env_name.
      backend: of training, "envpool" or "gymnasium".
      backend_reason: the backend in words, and whether the other one has the id, too.
      given: whether `env` is a vector environment.

    Raises:
      UsageError: there is no such environment, its backend is not installed, or settings do not go with what is given.
    """

    def __init__(self, config: EnvironmentConfig, env: Any = None, eval_env: Any = None):
        self._config = config
        self._env = config.env if env is None else env
        self._eval_env = (None if _is_given(env) else self._env) if eval_env is None else eval_env
        if _is_given(eval_env):
            raise UsageError(f"--eval_env={env_name(eval_env)}: a vector environment; pass an id or a function")
        self._settings = options.keywords("env_options", config.env_options)
        self._wrappers = options.wrappers("wrappers", config.wrappers)
        self._worked: set[str] = set()  # names of what was made once: when that fails, it is not the settings' fault
        self._told: set[str] = set()  # see Household
        self.name, self.given = env_name(self._env), _is_given(self._env)
        self._check_settings()
        if _is_given(self._env):
            _check_given(config, self._env, self.name)
        self.backend = self._backend_of(self._env)
        self.backend_reason = resolve.explain(env if isinstance(env, str) else self.name, self.backend)
        if self._eval_env is not None:
            self._backend_of(self._eval_env)
        self._spaces: tuple[gym.Space, gym.Space] | None = None  # those that `probe` found

    def training(self, seed: int, place: tuple[int, int] | None = None, whole_episodes: bool = False) -> VectorEnv:
        """config.num_envs environments; environment b has the seed seed + b.

        A given vector environment of gymnasium is reset with this seed; one of EnvPool keeps the seeds it has.

        place: see VectorEnv. whole_episodes: first ones are not staggered, and every one ends after LONGEST steps.

        Raises:
          UsageError: they cannot be made as asked for.
          EnvironmentFailure: one raised while it was made.
        """
        backend = self._given(seed) if _is_given(self._env) else self._make(self._env, self._config.num_envs, seed)
        restarts, agreeing = self._config.max_env_restarts, self._agreeing(backend, "env")
        if whole_episodes:
            return VectorEnv(agreeing, max_restarts=restarts, longest=LONGEST)
        return VectorEnv(agreeing, self._config.stagger, restarts, place=place)

    def of_worker(self, config: EnvironmentConfig) -> "Environments":
        """Those of one rollout worker, to be sent to its process.

        Args:
          config: as that of all, but for num_envs and env_threads.

        Raises:
          UsageError: a vector environment was given.
        """
        if self.given:
            raise UsageError(f"--workers: {self.name} is a vector environment; pass an id or a function instead")
        one = copy.copy(self)
        config = dataclasses.replace(config, env_backend=self.backend)  # not to be chosen anew, on another host
        one._config, one._eval_env, one._worked, one._told = config, None, set(self._worked), set()
        return one

    def registered(self) -> EnvSpec | None:
        """What a process that does not know gymnasium's id of the environment needs; None where there is no such id."""
        env = self._env
        known = isinstance(env, str) and self.backend == "gymnasium" and ":" not in env
        return single_env.portable_spec(env) if known else None

    def evaluation(
        self,
        num_envs: int,
        seed: int,
        render_mode: str | None = None,
        video_dir: str = "",
        longest: int = LONGEST,
    ) -> VectorEnv:
        """`num_envs` environments to evaluate in; environment b has the seed seed + b.

        Args:
          num_envs: B.
          seed: see above.
          render_mode: of gymnasium, which then serves: "human" shows the episodes, "rgb_array" lets them be recorded.
          video_dir: where every episode is recorded; empty: none is.
          longest: steps after which episodes are cut where the environment knows no time limit.

        Raises:
          UsageError: they cannot be made as asked for, or a vector environment was given and nothing to evaluate in,
            or their spaces are not those of training.
          EnvironmentFailure: one raised while it was made.
        """
        if self._eval_env is None:
            raise UsageError(f"--env={self.name}: a vector environment cannot be evaluated in; pass eval_env, too")
        backend = self._make(self._eval_env, num_envs, seed, render_mode, video_dir)
        limit = longest if backend.max_episode_steps is None else max(longest, LONGEST)
        return VectorEnv(self._agreeing(backend, "eval_env"), max_restarts=self._config.max_env_restarts, longest=limit)

    def check_evaluation(self) -> None:
        """Looks whether there is something to evaluate in; makes one environment where it is not that of training.

        Raises: see `evaluation`.
        """
        if self._eval_env is not self._env:
            self.evaluation(1, 0).close()

    def probe(self) -> VectorEnv:
        """One environment to look at; of a given vector environment itself, neither reset nor stepped.

        Raises:
          UsageError: it cannot be made as asked for.
          EnvironmentFailure: it raised while it was made.
        """
        given = _is_given(self._env)
        backend = self._given(0) if given else self._make(self._env, 1, 0, alone=True)
        self._spaces = backend.observation_space, backend.action_space
        if backend.name == "envpool" and not given:
            self._compare_backends()
        return VectorEnv(backend)

    def check_states(self) -> None:
        """Tries whether the environments of training can be put back to where they were; makes two.

        Raises:
          UsageError: they cannot be.
          EnvironmentFailure: one raised.
        """
        if self.given or self.backend == "envpool":
            raise env_state.refusal(self.name, envpool.NO_STATE if self.backend == "envpool" else gymnasium.GIVEN)
        with Named(self.name, ", while it was tried whether it can be put back"):
            exactness.check(self._prepared(self._env), self.name, self._config.env_processes)

    def _agreeing(self, backend: Backend, flag: str) -> Backend:
        """The backend, if its spaces are those that `probe` found; bounds of observations may differ."""
        for kind, theirs, ours in self._differing(backend):
            backend.close()
            raise UsageError(f"--{flag}={backend.env_name}: its {kind} space is {ours}; that of the policy is {theirs}")
        return backend

    def _differing(self, other: Any) -> Iterator[tuple[str, gym.Space, gym.Space]]:
        """Which spaces of something differ from those that `probe` found: kind, found, other."""
        if self._spaces is None:
            return
        observation, action = self._spaces
        if not checks.alike(observation, other.observation_space):
            yield "observation", observation, other.observation_space
        if not checks.alike(action, other.action_space, bounds=True):
            yield "action", action, other.action_space

    def _compare_backends(self) -> None:
        """Warns where gymnasium has another environment of the id than EnvPool, which was taken unasked."""
        env = self._config.env
        if self._config.env_backend != "auto" or env not in gym.registry or self._settings:
            return
        with contextlib.suppress(Exception), warnings.catch_warnings():  # it is EnvPool's that is used
            warnings.simplefilter("ignore")
            other = gym.make(env)
            other.close()
            for kind, ours, theirs in self._differing(other):
                warn(
                    f"--env={env}: its {kind} space is {ours} in EnvPool, which serves, and {theirs} in gymnasium, "
                    "which --env_backend=gymnasium takes"
                )

    def _check_settings(self) -> None:
        config, given = self._config, _is_given(self._env)
        if _OURS & self._settings.keys():
            ours = ", ".join(sorted(_OURS & self._settings.keys()))
            raise UsageError(f"--env_options={config.env_options}: {ours} is not to be set")
        if self._settings and not (isinstance(self._env, str) or isinstance(self._eval_env, str)):
            raise UsageError(
                f"--env_options={config.env_options}: goes with an id; {self.name} takes what it needs itself"
            )
        if self._wrappers and given:
            raise UsageError(
                f"--wrappers={config.wrappers}: {self.name} is a vector environment; wrap what it is made of"
            )
        if self._wrappers and config.env_backend == "envpool":
            raise UsageError(
                f"--wrappers={config.wrappers}: wrappers are gymnasium's; --env_backend=gymnasium takes them"
            )
        if not config.env_processes:
            return
        if given:
            raise UsageError(f"--env_processes: {self.name} is a vector environment; pass an id or a function instead")
        if config.env_backend == "envpool":
            raise UsageError("--env_processes: EnvPool has threads of its own; --env_backend=gymnasium takes processes")
        if not processes.available():
            raise UsageError("--env_processes: this system has no forkserver, which starts them")

    def _backend_of(self, env: Any, watched: bool = False) -> str:
        """Which backend serves an id, a function or a given vector environment.

        watched: shown or recorded, which is gymnasium's.
        """
        config = self._config
        if isinstance(env, str):
            needs = "--env_processes" if config.env_processes else "--wrappers" if self._wrappers else ""
            if needs and config.env_backend == "auto" and env not in gym.registry and env in envpool.ids():
                raise UsageError(f"--env={env}: EnvPool has it and gymnasium does not, whose {needs} is")
            asked = "gymnasium" if needs or watched else config.env_backend
            with self._named(env):
                return resolve.resolve_backend(env, asked, config.allow_env_module)
        serves = "envpool" if envpool.is_pool(env) else "gymnasium"
        if config.env_backend not in ("auto", serves):
            raise UsageError(f"--env_backend={config.env_backend}: {env_name(env)} is {serves}'s; leave it at auto")
        return serves

    def _given(self, seed: int) -> Backend:
        if envpool.is_pool(self._env):
            return envpool.given(self._env, self.name)
        return gymnasium.given(self._env, self.name, seed)

    def _make(
        self,
        env: str | Callable[[], gym.Env],
        num_envs: int,
        seed: int,
        render_mode: str | None = None,
        video_dir: str = "",
        alone: bool = False,
    ) -> Backend:
        """Fresh environments of an id or a function.

        alone: in this process, whatever the configuration says; when it fails, it is not made anew.
        """
        watched, name = bool(render_mode or video_dir), env_name(env)
        first = watched or name not in self._worked  # a render_mode is asked for anew each time
        household = Household(name, num_envs, self._config.env_timeout, alone or first, first, self._told)
        serves = self._backend_of(env, watched)
        settings = self._settings if isinstance(env, str) else {}
        with self._named(name), self._options_named(name, settings, serves), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision lowered.*")
            if serves == "envpool":
                return envpool.make(name, num_envs, seed, self._config.env_threads, settings)
            prepared = self._prepared(env, seed, render_mode, video_dir)
            in_processes = self._config.env_processes and not (watched or alone)
            backend = gymnasium.make(prepared, household, seed, in_processes)
            household.strict = alone
            self._worked.add(name)
            return backend

    def _prepared(
        self, env: str | Callable[[], gym.Env], seed: int = 0, render_mode: str | None = None, video_dir: str = ""
    ) -> single_env.Prepared:
        make = single_env.by_id(env, self._settings, render_mode) if isinstance(env, str) else env
        return single_env.Prepared(make, seed, self._wrappers, render_mode, video_dir)

    def _named(self, name: str) -> Named:
        mistakes = () if name in self._worked else (gym.error.Error, ImportError)
        return Named(name, ", while it was made", mistakes)

    @contextlib.contextmanager
    def _options_named(self, name: str, settings: dict[str, Any], serves: str) -> Iterator[None]:
        """Says that options are to blame, where there are any and making the environments failed."""
        try:
            yield
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            if not settings or isinstance(error, Error) or name in self._worked:
                raise
            theirs = "; those of EnvPool are not gymnasium's, which --env_backend=gymnasium takes"
            hint = theirs if serves == "envpool" else ""
            raise UsageError(f"--env_options={self._config.env_options}: {first_line(error)}{hint}") from error


def env_name(env: Any) -> str:
    """What to call an environment: its id, module:qualname of a function, or the id in the spec of an object."""
    if isinstance(env, str):
        return env
    if envpool.is_pool(env):
        return envpool.pool_name(env)
    if isinstance(env, gym.vector.VectorEnv):
        return gymnasium.vector_name(env)
    if isinstance(env, gym.Env):
        return env.spec.id if env.spec else type(env).__name__
    function = getattr(env, "func", env)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _is_given(env: Any) -> bool:
    """Whether it is a vector environment that somebody made.

    Raises:
      UsageError: it is neither that, nor an id, nor a function.
    """
    if env is None or isinstance(env, str):
        return False
    if envpool.is_pool(env) or isinstance(env, gym.vector.VectorEnv):
        return True
    if isinstance(env, gym.Env) or not callable(env):
        raise UsageError(
            f"--env={env_name(env)}: is neither an id, nor a function that makes a gymnasium.Env, nor a vector "
            "environment; pass one of these"
        )
    return False


def _check_given(config: EnvironmentConfig, env: Any, name: str) -> None:
    backend = envpool.given(env, name) if envpool.is_pool(env) else gymnasium.given(env, name, 0)
    if backend.num_envs != config.num_envs:
        raise UsageError(f"--num_envs={config.num_envs}: {name} has {backend.num_envs} environments; must be the same")
