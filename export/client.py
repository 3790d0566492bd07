"""Asks a served policy for actions, over REST or gRPC, and drives an environment with it.

    python -m export.client --url=http://127.0.0.1:8501 --env=Hopper-v5 --episodes=5
    python -m export.client --url=grpc://127.0.0.1:8500 --env=Hopper-v5 --episodes=5

In a program: Policy("http://127.0.0.1:8501").action(obs). REST needs numpy only. gRPC needs tensorflow-serving-api.
Driving an environment needs gymnasium. This file stands alone: copy it where it is needed.
"""

import argparse
import base64
import http.client
import json
import keyword
import re
import sys
import time
from urllib.parse import urlsplit

import numpy as np

_TAKEN = ("seed", "raw_action", "vector", "is_first", "policy_state", "value_state")  # names that no leaf has
_TRANSIENT = (0, 429, 502, 503, 504)  # statuses after which a request is tried again; 0: no connection
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds before another try; the pause doubles up to the longest


class ServingError(RuntimeError):
    """A request failed; the text is the server's.

    Args:
      status: as in HTTP; gRPC's codes are translated; 0 where nothing answered.
      text: the reason.
    """

    def __init__(self, status: int, text: str):
        super().__init__(f"{status}: {text}" if status else text)
        self.status = status


class Policy:
    """A policy behind a server.

    Args:
      url: http://host:port or https://host:port for REST, grpc://host:port for gRPC.
      model: the name that the server has for it.
      version: the number of the version that has to answer; 0: the newest one of the server.
      label: one of the server's version_labels, such as "stable"; instead of a version.
      deadline: seconds that a call may take, including further tries.

    Raises:
      ValueError: the URL is of another kind, or both version and label are given.
    """

    def __init__(self, url: str, model: str = "policy", version: int = 0, label: str = "", deadline: float = 5.0):
        if version and label:
            raise ValueError("version and label exclude each other")
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https", "grpc"):
            raise ValueError(f"{url}: http://, https:// or grpc:// is needed")
        made = _Grpc if scheme == "grpc" else _Rest
        self._server = made(url, model, version, label)
        self._deadline = deadline
        self._specs: dict[str, dict] | None = None
        self._specs_version = 0

    @property
    def version(self) -> int:
        """The version that answered last; 0 before the first answer, and over REST with a label."""
        return self._server.answered

    def action(self, obs, **states):
        """The mode; of a nested space a dict of its leaves. obs: as the environment gives them, [...] or [N, ...]."""
        return _action(self.predict(obs, **states))

    def sample(self, obs, seed, **states):
        """A drawn action. seed: [2] or [N, 2] int32; equal observations and seeds draw equal actions in any batch."""
        return _action(self.predict(obs, "sample", seed=seed, **states))

    def predict(self, obs, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
        """All outputs of a signature, by name.

        Args:
          obs: as the environment gives them, or a dict of the signature's inputs; [...] or [N, ...] each.
          inputs: the others of the signature: seed, raw_action, the states of a recurrent policy.

        Returns:
          [...] or [N, ...] each. The states of a recurrent policy are those after obs.

        Raises:
          TypeError: these are not the signature's inputs.
          ValueError: one has another shape, or numbers that the input's type does not hold.
          ServingError: the server refuses, or does not answer within the deadline.
        """
        until = time.monotonic() + self._deadline
        specs = self._ask_specs(signature, until)["inputs"]
        leaves = named(obs)
        given = leaves | inputs
        if given.keys() != specs.keys():
            raise TypeError(f"{signature} takes {', '.join(sorted(specs))}, not {', '.join(sorted(given))}")
        arrays = {name: _typed(name, value, specs[name][0]) for name, value in given.items()}
        single = any(arrays[name].ndim < len(specs[name][1]) for name in leaves)
        if single:
            arrays = {name: x[None] for name, x in arrays.items()}
        rows = len(arrays[next(iter(leaves))])
        for name, x in arrays.items():
            if x.shape != (rows, *specs[name][1][1:]):
                raise ValueError(
                    f"{name} has shape {x.shape[single:]}, where {(rows, *specs[name][1][1:])[single:]} is needed"
                )
        if not rows:
            raise ValueError("the batch is empty")
        outputs = self._retry(lambda: self._server.predict(signature, arrays, until), until)
        if self.version != self._specs_version:  # another version may have other outputs
            self._specs, self._specs_version = None, self.version
        types = self._ask_specs(signature, until)["outputs"]
        outputs = {name: np.asarray(value, types[name][0]) for name, value in outputs.items()}
        return {name: value[0] for name, value in outputs.items()} if single else outputs

    def specs(self, signature: str) -> dict[str, dict[str, tuple]]:
        """Inputs and outputs of a signature: (dtype, shape) by name, -1 for the batch. The server is asked once.

        Raises:
          ServingError: as in `predict`; 404 where there is no such signature.
        """
        return self._ask_specs(signature, time.monotonic() + self._deadline)

    def _ask_specs(self, signature: str, until: float) -> dict[str, dict[str, tuple]]:
        if self._specs is None:
            self._specs = self._retry(lambda: self._server.specs(until), until)
        if signature not in self._specs:
            raise ServingError(404, f"no signature {signature}; there is {', '.join(sorted(self._specs))}")
        return self._specs[signature]

    def stateful_act(self, seeds=None):
        """A function act(obs, is_first) -> outputs for one observation, that keeps the recurrent states.

        Where is_first is true the state is that of an episode's beginning.

        Args:
          seeds: an iterator over the seeds [2] int32 of draws; without it the mode is taken.
        """
        signature = "serving_default" if seeds is None else "sample"
        specs = self.specs(signature)["inputs"]
        start = {n: np.zeros(specs[n][1][1:], np.float32) for n in ("policy_state", "value_state") if n in specs}
        states = dict(start)

        def act(obs, is_first: bool):
            states.update(start if is_first else {})
            drawn = {} if seeds is None else {"seed": next(seeds)}
            answer = self.predict(obs, signature, **drawn, **states)
            states.update({name: answer[name] for name in states})
            return answer

        return act

    def close(self) -> None:
        """Ends the connection."""
        self._server.close()

    def _retry(self, ask, until: float):
        """Returns what ask() returns; calls it again after transient failures while there is time."""
        pause = _PAUSE
        while True:
            try:
                return ask()
            except ServingError as error:
                if error.status not in _TRANSIENT or until - time.monotonic() < pause:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class _Rest:
    """TF Serving's REST interface, version 1, over one connection.

    Every request names its version, so that it is known which version answered.
    """

    def __init__(self, url: str, model: str, version: int, label: str):
        parts = urlsplit(url)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._root = parts.netloc, f"{parts.path.rstrip('/')}/v1/models/{model}"
        self._label = f"/labels/{label}" if label else ""
        self._pinned, self._current = version, version  # 0: unknown
        self.answered, self._connection = 0, None

    def predict(self, signature: str, arrays: dict, until: float) -> dict:
        """Outputs as lists, by name."""
        body = json.dumps({"signature_name": signature, "inputs": {k: _listed(v) for k, v in arrays.items()}})
        try:
            answer = self._ask("POST", f"{self._place(until)}:predict", until, body)
        except ServingError as error:
            if error.status != 404 or self._pinned or not self._current:
                raise
            self._current = 0  # the server has exchanged the version for a newer one
            answer = self._ask("POST", f"{self._place(until)}:predict", until, body)
        self.answered = self._current
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            raise ServingError(502, f"{self._host} is no server of a policy: an answer without outputs")
        return outputs

    def specs(self, until: float) -> dict[str, dict]:
        """Signatures by name."""
        try:
            metadata = self._ask("GET", f"{self._place(until)}/metadata", until)["metadata"]
            definitions = metadata["signature_def"]["signature_def"]
        except (KeyError, TypeError):
            raise ServingError(502, f"{self._host} is no server of a policy: metadata without signatures") from None

        def tensors(infos):
            return {
                name: (_TYPES[info["dtype"]], [int(d["size"]) for d in info["tensor_shape"].get("dim", [])])
                for name, info in infos.items()
            }

        return {
            name: {kind: tensors(definition[kind]) for kind in ("inputs", "outputs")}
            for name, definition in definitions.items()
            if not name.startswith("__")
        }

    def _place(self, until: float) -> str:
        """The path of the version that is asked; looks for the newest one where none is known."""
        if self._label:
            return self._root + self._label
        if not self._current:
            states = self._ask("GET", self._root, until).get("model_version_status", [])
            ready = [int(s["version"]) for s in states if s["state"] == "AVAILABLE"]
            if not ready:
                raise ServingError(503, "no version is available yet")
            self._current = max(ready)
        return f"{self._root}/versions/{self._current}"

    def _ask(self, method: str, path: str, until: float, body: str | None = None) -> dict:
        """The JSON object that answers a request.

        Raises:
          ServingError: nothing answers, the answer is an error, or it is no JSON object.
        """
        try:
            if self._connection is None:
                self._connection = self._kind(self._host)
            self._set_timeout(until)
            self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            self._set_timeout(until)
            response = self._connection.getresponse()
            status, text = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServingError(0, f"{self._host} does not answer: {error or type(error).__name__}") from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text[:200].decode(errors="replace")}
        if not isinstance(answer, dict):
            answer = {"error": answer}
        if status != 200 or "error" in answer:
            raise ServingError(status if status != 200 else 502, str(answer.get("error", answer)))
        return answer

    def _set_timeout(self, until: float) -> None:
        """Lets the connection wait until then at most, in seconds of time.monotonic."""
        left = max(until - time.monotonic(), 0.001)
        self._connection.timeout = left
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left)

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Grpc:
    """TF Serving's gRPC interface, PredictionService."""

    def __init__(self, url: str, model: str, version: int, label: str):
        try:
            import grpc
            import tensorflow as tf
            from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError("grpc:// needs tensorflow-serving-api: pip install tensorflow-serving-api") from error
        self._grpc, self._tf = grpc, tf
        self._messages = predict_pb2, get_model_metadata_pb2
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(urlsplit(url).netloc, unlimited)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model, self._version, self._label = model, version, label
        self.answered = 0

    def predict(self, signature: str, arrays: dict, until: float) -> dict:
        """Outputs as arrays, by name."""
        request = self._messages[0].PredictRequest()
        self._address(request.model_spec).signature_name = signature
        for name, value in arrays.items():
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(value))
        answer = self._call(self._stub.Predict, request, until)
        self.answered = answer.model_spec.version.value
        return {name: self._tf.make_ndarray(value) for name, value in answer.outputs.items()}

    def specs(self, until: float) -> dict[str, dict]:
        """Signatures by name."""
        request = self._messages[1].GetModelMetadataRequest(metadata_field=["signature_def"])
        self._address(request.model_spec)
        definitions = self._messages[1].SignatureDefMap()
        self._call(self._stub.GetModelMetadata, request, until).metadata["signature_def"].Unpack(definitions)

        def tensors(infos):
            return {
                name: (self._tf.as_dtype(info.dtype).as_numpy_dtype, [d.size for d in info.tensor_shape.dim])
                for name, info in infos.items()
            }

        return {
            name: {"inputs": tensors(definition.inputs), "outputs": tensors(definition.outputs)}
            for name, definition in definitions.signature_def.items()
            if not name.startswith("__")
        }

    def _address(self, spec):
        """Writes into a request which model and version it is for."""
        spec.name = self._model
        if self._version:
            spec.version.value = self._version
        if self._label:
            spec.version_label = self._label
        return spec

    def _call(self, method, request, until: float):
        """The response of a method.

        Raises:
          ServingError: the server refuses, or does not answer in time.
        """
        try:
            return method(request, timeout=max(until - time.monotonic(), 0.001))
        except self._grpc.RpcError as error:
            too_large = error.code().name == "RESOURCE_EXHAUSTED" and "larger than max" in error.details()
            status = 413 if too_large else _STATUS.get(error.code().name, 500)
            raise ServingError(status, error.details()) from None

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400}
_STATUS |= {"UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "CANCELLED": 0}
_TYPES = {
    "DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_INT8": np.int8, "DT_UINT8": np.uint8, "DT_INT16": np.int16,
    "DT_INT32": np.int32, "DT_INT64": np.int64, "DT_BOOL": np.bool_, "DT_STRING": np.object_,
}  # fmt: skip


def _typed(name: str, value, dtype) -> np.ndarray:
    """The value as an array of an input's type. Floats are rounded.

    Raises:
      ValueError: it is no array of numbers, or holds a whole number that the type does not.
    """
    try:
        x, whole = np.asarray(value), np.dtype(dtype).kind in "iub"
        with np.errstate(all="ignore"):
            typed = x.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from None
    if whole and not np.array_equal(typed, x):
        raise ValueError(f"{name} holds numbers that {np.dtype(dtype).name} does not")
    return typed


def _listed(x: np.ndarray):
    """The array as lists for JSON; bytes in base 64, as TF Serving takes them."""
    if x.dtype == np.object_:
        return [{"b64": base64.b64encode(value).decode()} for value in x.reshape(-1)]
    return x.tolist()


def named(value, whole: str = "observation") -> dict:
    """The leaves of an observation by the names of a model's inputs.

    A value that is no dict or tuple is one leaf with the name `whole`. The leaf at value["Left arm"][0] is left_arm_0.
    A name that is taken or does not begin with a letter gets `whole` and _ before it.
    """
    if not isinstance(value, dict | tuple):
        return {whole: value}
    leaves: dict = {}

    def walk(part, path):
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                walk(part[key], (*path, str(key)))
        elif isinstance(part, tuple):
            for index, item in enumerate(part):
                walk(item, (*path, str(index)))
        else:
            name = re.sub(r"[^a-z0-9_]", "_", "_".join(path).lower())
            if not name[:1].isalpha() or name in _TAKEN or keyword.iskeyword(name):
                name = f"{whole}_{name}"
            while name in leaves:
                name += "_"
            leaves[name] = part

    walk(value, ())
    return leaves


def _action(answer: dict):
    """The outputs that are the action: the array where there is one leaf, otherwise a dict of the leaves."""
    others = {"value", "valid", "raw_action", "log_prob", "policy_state", "value_state"}
    leaves = {name: value for name, value in answer.items() if name not in others}
    return leaves["action"] if leaves.keys() == {"action"} else leaves


def shaped(space, answer: dict):
    """The action of an answer as the environment's step takes it: leaves are put into the structure of the space."""
    import gymnasium as gym

    def parts(part):
        if isinstance(part, gym.spaces.Dict):
            return {key: parts(inner) for key, inner in part.items()}
        if isinstance(part, gym.spaces.Tuple):
            return tuple(parts(inner) for inner in part)
        return part

    names = {id(leaf): name for name, leaf in named(parts(space), "action").items()}

    def put(part):
        if isinstance(part, gym.spaces.Dict):
            return {key: put(inner) for key, inner in part.items()}
        if isinstance(part, gym.spaces.Tuple):
            return tuple(put(inner) for inner in part)
        return np.asarray(answer[names[id(part)]], part.dtype).reshape(part.shape)[()]

    return put(space)


def episodes(policy: Policy, env, count: int, seed: int = 0, stochastic: bool = False):
    """Yields episode_return and episode_length of every episode; episode k begins with reset(seed=seed + k).

    Args:
      policy: acts.
      env: a single environment.
      count: episodes.
      seed: of the first episode, and of the draws.
      stochastic: draw actions; otherwise take the mode.
    """
    seeds = (np.array([seed, k], np.int32) for k in range(2**31 - 1))
    act = policy.stateful_act(seeds if stochastic else None)
    for episode in range(count):
        obs, _ = env.reset(seed=seed + episode)
        episode_return, episode_length, ended = 0.0, 0, False
        while not ended:
            action = shaped(env.action_space, act(obs, episode_length == 0))
            obs, reward, terminated, truncated, _ = env.step(action)
            episode_return += float(reward)
            episode_length += 1
            ended = terminated or truncated
        yield episode_return, episode_length


def main(argv=None) -> int:
    """Runs episodes and prints their returns. Returns the exit status, 1 when the server fails."""
    parser = argparse.ArgumentParser(prog="python -m export.client", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="http://host:8501, https://..., or grpc://host:8500")
    parser.add_argument("--model", default="policy", help="the name that the server has for the policy")
    parser.add_argument("--version", type=int, default=0, help="the version that has to answer; 0: the newest")
    parser.add_argument("--label", default="", help="of a version, such as stable; instead of --version")
    parser.add_argument("--env", required=True, help="a gymnasium id")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--stochastic", action="store_true", help="draw actions; otherwise take the mode")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds for an answer, including further tries")
    args = parser.parse_args(argv)
    import gymnasium as gym

    try:
        env = gym.make(args.env)
        policy = Policy(args.url, args.model, args.version, args.label, args.deadline)
        found = []
        for episode_return, length in episodes(policy, env, args.episodes, args.seed, args.stochastic):
            found.append(episode_return)
            line = f"episode {len(found)}  return {episode_return:.2f}  length {length}  version {policy.version}"
            print(line, flush=True)
        print(f"mean {np.mean(found):.2f}  standard deviation {np.std(found):.2f}  episodes {len(found)}")
    except (ServingError, ValueError, TypeError, ImportError, gym.error.Error) as error:
        print(f"export.client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
