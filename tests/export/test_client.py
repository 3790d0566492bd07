"""The client: requests that it refuses, errors of the server, deadlines, episodes."""

import http.server
import json
import threading
import time

import gymnasium as gym
import numpy as np
import pytest

from export import client
from tests.exports import METADATA
from tests.served import OBS, serving
from trpo_tf.config import PolicyConfig
from trpo_tf.policy.policy import Policy
from trpo_tf.serving import saved_model
from trpo_tf.serving.loaded_policy import LoadedPolicy


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_client_tells_what_went_wrong(address, scheme):
    url = address.url(scheme)
    with pytest.raises(client.ServingError, match="404") as raised:
        client.Policy(url, model="other").action(OBS)
    assert raised.value.status == 404
    policy = client.Policy(url)
    with pytest.raises(client.ServingError, match="no signature mode; there is distribution"):
        policy.predict(OBS, "mode")
    with pytest.raises(TypeError, match="serving_default takes observation, not observation, seed"):
        policy.predict(OBS, seed=[0, 0])
    with pytest.raises(ValueError, match=r"observation has shape \(2,\), where \(3,\) is needed"):
        policy.action([0.1, 0.2])
    assert policy.action(np.full(3, np.nan)).shape == (2,)
    assert policy.predict(np.full(3, np.nan))["valid"] == np.False_


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_row_is_answered_alone_as_in_a_batch_sampled_too(address, scheme):
    policy = client.Policy(address.url(scheme))
    obs = np.random.default_rng(0).normal(size=(33, 3)).astype(np.float32)
    seeds = np.stack([np.arange(33), np.arange(33)], 1)
    batch, modes = policy.sample(obs, seeds), policy.action(obs)
    for row in range(33):
        np.testing.assert_allclose(policy.sample(obs[row], seeds[row]), batch[row], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.action(obs[row]), modes[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server_is_one_line_within_the_deadline(scheme):
    start = time.monotonic()
    with pytest.raises(client.ServingError):
        client.Policy(f"{scheme}://127.0.0.1:9", deadline=0.5).action(OBS)
    assert time.monotonic() - start < 5


class Sluggish(http.server.BaseHTTPRequestHandler):
    """Answers every request after server.delay seconds with server.answer."""

    def do_GET(self):
        time.sleep(self.server.delay)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.answer)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def sluggish():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sluggish) as server_:
        server_.delay = 0.8
        server_.answer = json.dumps({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}).encode()
        threading.Thread(target=server_.serve_forever, daemon=True).start()
        yield server_
        server_.shutdown()


def test_the_deadline_is_that_of_all_that_a_call_asks(sluggish):
    start = time.monotonic()
    with pytest.raises(client.ServingError):
        client.Policy(f"http://127.0.0.1:{sluggish.server_port}", deadline=1.0).action(OBS)
    assert time.monotonic() - start < 1.7, "three answers take 2.4 s"


@pytest.mark.parametrize("answer", [b"[1]", b"{}", b"<html>", b'{"metadata": []}'])
def test_an_answer_of_something_else_is_a_serving_error(sluggish, answer):
    sluggish.delay, sluggish.answer = 0.0, answer
    with pytest.raises(client.ServingError):
        client.Policy(f"http://127.0.0.1:{sluggish.server_port}", version=1, deadline=0.2).action(OBS)


def test_the_client_does_not_bend_numbers(address):
    policy = client.Policy(address.url("http"))
    for seed in ([2**40 + 5, 0], [0.5, 0], [float("nan"), 0]):
        with pytest.raises(ValueError, match="seed holds numbers that int32 does not"):
            policy.sample(OBS, seed)


@pytest.mark.slow
def test_a_policy_driven_through_a_server_has_the_returns_of_the_policy_in_process(tmp_path):
    """Episode by episode, with the same seeds: the same numbers go in and come out."""
    env = gym.make("Hopper-v5")
    made = Policy(env.observation_space, env.action_space, PolicyConfig(), seed=0)
    made.network.assign(10 * made.network.theta())  # large actions: it falls soon
    path = saved_model.save(made, 1.0, METADATA, tmp_path)
    policy = LoadedPolicy(path)

    def in_process(episodes):
        for episode in range(episodes):
            obs, _ = env.reset(seed=5 + episode)
            episode_return, ended = 0.0, False
            while not ended:
                obs, reward, terminated, truncated, _ = env.step(policy.action(obs))
                episode_return, ended = episode_return + float(reward), terminated or truncated
            yield episode_return

    expected = list(in_process(8))
    assert len(set(expected)) == 8
    with serving(tmp_path) as (_, rest_port, grpc_port):
        for url in (f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}"):
            asked = client.Policy(url)
            assert [episode_return for episode_return, _ in client.episodes(asked, env, 8, seed=5)] == expected
            for drawn in (False, True):
                again = [list(client.episodes(asked, env, 2, 5, drawn)) for _ in range(2)]
                assert again[0] == again[1]
