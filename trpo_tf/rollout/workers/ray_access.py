"""Whether a Ray cluster asks who wants to join it, and whether this host has the answer."""

import os
import socket
import subprocess
import sys

from trpo_tf.config import WorkersConfig
from trpo_tf.errors import UsageError, first_line, one_line

_CONNECTING, _PROBING = 5, 30  # seconds that they may take
_PROBE = """
import sys
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    ensure_token_if_auth_enabled(None, False)
    GcsClient(address=sys.argv[1]).internal_kv_get(b"session_name", b"session", timeout=5)
except AuthenticationError:
    print("refused")
else:
    print("let in")
"""


def auth_mode(config: WorkersConfig, address: str) -> str:
    """The RAY_AUTH_MODE to join a cluster with: "token", or "disabled" where the user allows that.

    A member of a cluster runs what any other sends: without a token, that is everybody who reaches its ports. Whether
    the cluster asks for one is seen by a call without; a loopback address says nothing of where else it listens.

    Raises:
      UsageError: nothing answers, or the cluster asks nobody for a token, or the one of this host is not its own.
    """
    flag = f"--ray_address={config.ray_address}"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTING).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{flag}: nothing answers at {address} ({first_line(error)}); is it the address of a head?"
        ) from error
    if not _lets_in(flag, address, "disabled"):
        if not _lets_in(flag, address, "token"):
            raise UsageError(
                f"{flag}: the cluster has another token than this host, or this host has none; set RAY_AUTH_TOKEN_PATH "
                "to a file with its own"
            )
        return "token"
    if not config.allow_insecure_ray:
        raise UsageError(
            f"{flag}: the cluster asks nobody for a token; begin it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
            "on every host, or pass --allow_insecure_ray, if nobody else can reach it"
        )
    return "disabled"


def _lets_in(flag: str, address: str, mode: str) -> bool:
    """Whether a cluster answers a process with this RAY_AUTH_MODE. Ray itself would try for a minute.

    Raises:
      UsageError: it is no cluster.
    """
    command, environment = [sys.executable, "-c", _PROBE, address], os.environ | {"RAY_AUTH_MODE": mode}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PROBING)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{flag}: no Ray cluster answers there within {_PROBING} seconds") from error
    answer = done.stdout.strip()
    if answer not in ("let in", "refused"):
        said = one_line(done.stderr.strip().rpartition("\n")[2])
        raise UsageError(f"{flag}: no Ray cluster answers there, or one of another version: {said}")
    return answer == "let in"
