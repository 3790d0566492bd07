"""The transaction: what is not finite is not committed, and what raises leaves everything as it was, to the bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.tasks  # noqa: F401, registers environments
from trpo_tf.errors import ActingDiffersError
from trpo_tf.learner.learner import Learner
from trpo_tf.learner.transaction import Undo, if_finite
from trpo_tf.rollout.environments import Environments
from trpo_tf.session import Session


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("assigned", "returned", "committed"),
    [
        ([3.0, 4.0], 5.0, True),
        ([3.0, np.nan], 5.0, False),
        ([np.inf, 4.0], 5.0, False),
        ([3.0, 4.0], -np.inf, False),
    ],
)
def test_all_variables_change_or_none(compiled, assigned, returned, committed):
    numbers, count = tf.Variable([1.0, 2.0]), tf.Variable(7)

    @tf.function(autograph=False, jit_compile=compiled)
    def update(x, y):
        def change():
            numbers.assign(x)
            count.assign_add(1)
            return [y]

        return if_finite([numbers, count], change)

    (y,), finite = update(tf.constant(assigned), tf.constant(returned))
    assert bool(finite) == committed
    assert float(y) == returned
    assert numbers.numpy().tolist() == (assigned if committed else [1.0, 2.0])
    assert int(count) == (8 if committed else 7)


def test_variables_are_given_back_where_the_block_raises():
    """Also where they were changed in place, and by a compiled function, whose result may take a variable's memory."""
    a, b, order = tf.Variable([1.0, 2.0]), keras.Variable([3.0]), []
    double = tf.function(lambda: a.assign(2 * a), autograph=False, jit_compile=True)

    def change():
        with Undo([a, b]).on_failure(first=lambda: order.append(a.numpy().tolist())):
            a.assign_add([1.0, 1.0])
            double()
            b.assign([9.0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    assert order == [[4.0, 6.0]]
    assert a.numpy().tolist() == [1.0, 2.0]
    assert b.numpy().tolist() == [3.0]
    with Undo([a]).on_failure():
        a.assign([5.0, 5.0])
    assert a.numpy().tolist() == [5.0, 5.0]


PARTS = {  # the metric that is 0, and what of a checkpoint stays to the bit
    "value": ("policy/value/", "learner/adam/"),
    "rewards": ("learner/reward_moments/",),
    "normalizer": ("policy/normalizer/",),
}


def rewarded(rollout, reward):
    """The rollout with these rewards, and the discounted returns that they would have."""
    rewards = np.full_like(rollout.trajectory.reward, reward)
    with np.errstate(over="ignore"):
        total = np.cumsum(rewards, 0, dtype=np.float32)
    return rollout._replace(trajectory=rollout.trajectory._replace(reward=rewards), discounted_return=total)


def seen(rollout, number):
    """The rollout with an observation that no square of float64 can hold, where its dtype can."""
    obs = {name: x.copy() for name, x in rollout.trajectory.obs.items()}
    for x in obs.values():
        x[1:3] = number
    return rollout._replace(trajectory=rollout.trajectory._replace(obs=obs))


def slow(*values):
    """Values of a parameter that take seconds to trace and differ little from others."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("settings", "change", "refused"),
    [
        slow({}, lambda rollout: rewarded(rollout, 1e38), {"rewards"}),
        ({}, lambda rollout: rewarded(rollout, 1e37), {"rewards"}),  # finite, but its deviation would hide all others
        ({"scale_reward": False}, lambda rollout: rewarded(rollout, 1e30), {"rewards", "value"}),
        slow({"scale_reward": False, "reuse": 2}, lambda rollout: rewarded(rollout, 3e38), {"rewards", "value"}),
        ({"value_learning_rate": 1e30}, None, {"value"}),
        slow({"value_learning_rate": 1e20, "xla": "on"}, None, {"value"}),
        slow({"chunk_size": 20, "value_learning_rate": 1e30}, None, {"value"}),
        ({"env": "Offset-v0"}, lambda rollout: seen(rollout, 1e300), {"normalizer"}),
        slow({"env": "Offset-v0", "chunk_size": 20}, lambda rollout: seen(rollout, 1e300), {"normalizer"}),
    ],
)
def test_what_is_not_finite_is_not_committed(make_session, rolled_out, arrays, capsys, settings, change, refused):
    session = make_session(**settings)
    session.step()
    before, rollout = arrays(session), rolled_out(session)
    metrics, fit = session.learner.update(change(rollout) if change else rollout, 1, 0.0)
    metrics, after = metrics | fit.result(), arrays(session)
    committed = {name.split("/")[0]: value for name, value in metrics.items() if name.endswith("/committed")}
    assert committed == {name: int(name not in refused) for name in ("policy", "value", "rewards", "normalizer")}
    for part, prefixes in PARTS.items():
        names = [name for name in before if name.startswith(prefixes)]
        same = all(before[name].tobytes() == after[name].tobytes() for name in names)
        assert names
        assert same == (part in refused), part
    for name, x in after.items():  # what was rolled out is kept as it came
        assert "/rollout/" in name or x.dtype.kind != "f" or np.isfinite(x).all(), name
    said = capsys.readouterr().err
    assert all(said.count(f"({part}/committed)") == (part in refused) for part in PARTS)


def test_nan_in_adam_is_not_spread(make_session, arrays):
    """Whatever made it: networks, values and losses stay finite, and the policy learns on."""
    session = make_session()
    session.step()
    session.learner.wait()
    session.learner.adam.v.assign(np.full(session.learner.adam.v.shape, np.nan))
    before = arrays(session)
    row, after = dict(session.step()), arrays(session)
    assert row["value/committed"] == 0
    assert row["policy/committed"] == 1
    assert row["policy/kl"] > 0
    assert np.isfinite(row["value/loss"])
    assert np.isfinite(row["value/explained_variance_after"])
    assert all(before[name].tobytes() == after[name].tobytes() for name in before if name.startswith("policy/value/"))


class BadRule(tf.Module):
    """A step rule whose parameters are not finite, and neither is what it remembers."""

    def __init__(self):
        super().__init__()
        self.memory = tf.Variable(1.0, name="memory")

    def __call__(self, objective, theta_old, prepared):
        self.memory.assign(np.nan)
        return theta_old * np.inf, {"policy/max_ratio_error": tf.constant(0.0)}


def test_a_step_rule_that_is_not_finite_changes_nothing(make_session, rolled_out, arrays):
    session = make_session()
    rule, rollout = BadRule(), rolled_out(session)
    session.learner = Learner(session.policy, session.config, 0, rule)
    before = arrays(session)
    metrics, fit = session.learner.update(rollout, 0, 0.0)
    fit.result()
    assert metrics["policy/committed"] == 0
    assert float(rule.memory) == 1.0
    kept = [name for name in before if name.startswith("policy/policy/")]
    assert kept
    assert all(before[name].tobytes() == arrays(session)[name].tobytes() for name in kept)


def failing(name):
    """Makes a part of the learner fail: failing(...)(session) -> the exception's class."""

    def step_raises(session):
        def fails(*_):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

        session.learner._policy_step = fails

    def commit_raises(session):
        commit = session.learner._commit

        def fails(*given):
            commit(*given)
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

        session.learner._commit = fails

    return {"step": step_raises, "commit": commit_raises}[name]


@pytest.mark.parametrize("settings", [{}, slow({"reuse": 2, "radius": "adaptive"}), slow({"chunk_size": 20})])
def test_an_update_that_raises_leaves_everything_to_the_bit(make_session, rolled_out, arrays, settings):
    """And the same update on the same rollout then learns what it would have learned at once."""

    def run(fails):
        session = make_session(**settings)
        session.step()
        rollout, learner = rolled_out(session), session.learner
        for part in fails:
            before, whole = arrays(session), (learner._policy_step, learner._commit)
            failing(part)(session)
            with pytest.raises(tf.errors.ResourceExhaustedError):
                learner.update(rollout, 1, 0.0)
            after = arrays(session)
            assert before.keys() == after.keys()
            for name, value in before.items():
                assert value.tobytes() == after[name].tobytes(), name
            learner._policy_step, learner._commit = whole
        learner.update(rollout, 1, 0.0)
        return {name: x.tobytes() for name, x in arrays(session).items()}

    assert run(("step", "commit")) == run(())


def test_a_value_fit_that_raises_is_told_once_and_leaves_what_was_there(make_session, arrays):
    """By the next update; a checkpoint can be taken before it, and training can go on after it."""
    session = make_session()
    session.step()
    before, fit = arrays(session), session.learner._fit_values

    def fails(*given):
        fit(*given)
        raise ZeroDivisionError("in the middle")

    session.learner._fit_values = fails
    row, after = session.step(), arrays(session)
    for name in [name for name in before if name.startswith(PARTS["value"])]:
        assert before[name].tobytes() == after[name].tobytes(), name
    session.learner._fit_values = fit
    with pytest.raises(ZeroDivisionError):
        session.step()
    with pytest.raises(ZeroDivisionError):
        row["value/loss"]
    assert session.step()["value/committed"] == 1


@keras.saving.register_keras_serializable()
class Raises(keras.layers.Layer):
    """Hands on what it gets, until it is told to raise."""

    armed = False

    def call(self, x):
        def check(y):
            if Raises.armed:
                raise ArithmeticError("the model's own trouble")
            return y

        y = tf.numpy_function(check, [tf.stop_gradient(x)], x.dtype, stateful=True)
        return x + 0.0 * tf.ensure_shape(y, x.shape)


@pytest.mark.slow
def test_a_model_that_raises_in_the_middle_of_an_update_leaves_everything(tiny, rolled_out, arrays):
    layers = [keras.layers.Input((4,)), keras.layers.Dense(4, "tanh"), Raises(), keras.layers.Dense(1)]
    config = tiny()
    session = Session(config, Environments(config.environment), value_network=keras.Sequential(layers))
    session.step()
    before, rollout = arrays(session), rolled_out(session)
    Raises.armed = True
    try:
        with pytest.raises(tf.errors.OpError, match="own trouble"):
            session.learner.update(rollout, 1, 0.0)
    finally:
        Raises.armed = False
    assert all(before[name].tobytes() == x.tobytes() for name, x in arrays(session).items())
    assert session.step()["value/committed"] == 1
    session.close()


def test_a_policy_that_acts_otherwise_is_refused_before_anything_is_learned(make_session, rolled_out, arrays):
    session = make_session(reuse=2)
    before, rollout = arrays(session), rolled_out(session)
    trajectory = rollout.trajectory._replace(behavior_logp=rollout.trajectory.behavior_logp + np.float32(0.2))
    with pytest.raises(ActingDiffersError):
        session.learner.update(rollout._replace(trajectory=trajectory), 0, 0.0)
    after = arrays(session)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.parametrize("name", [slow("sums"), slow("squares"), "max_kl"])
def test_a_radius_that_is_not_finite_is_not_kept(make_session, monkeypatch, name):
    session = make_session(radius="adaptive")
    radius = session.learner.step_rule.radius
    before = getattr(radius, name).numpy()
    follow = type(radius).follow

    def spoilt(self, *given):
        follow(self, *given)
        variable = getattr(self, name)
        variable.assign(variable * np.inf)

    monkeypatch.setattr(type(radius), "follow", spoilt)
    assert dict(session.step())["policy/committed"] == 0
    np.testing.assert_array_equal(getattr(radius, name).numpy(), before)


@pytest.mark.slow
def test_learning_goes_on_after_a_burst_of_huge_rewards(make_session, arrays):
    """Rewards of 1e38 in updates 2 and 3 of 16: afterwards values are fitted as well as in a run without them."""

    def last(env):
        session = make_session(env=env, env_backend="gymnasium", steps_per_update=512, checkpoint_every=50)
        rows = [dict(session.step()) for _ in range(16)]
        assert all(np.isfinite(x).all() for x in arrays(session).values() if x.dtype.kind == "f")
        return rows

    usual, burst = last("PositionCartPole-v0"), last("Burst-v0")
    assert [row["rewards/committed"] for row in burst] == [1, 0, 0] + [1] * 13
    assert [row["value/committed"] for row in burst] == [1] * 16
    assert all(row["policy/kl"] > 0 for row in burst[3:])
    assert burst[-1]["value/loss"] < 10 * usual[-1]["value/loss"]
