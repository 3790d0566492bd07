"""TF Serving's REST interface, version 1, on one model.

  GET   /v1/models/NAME[/versions/N]            the status of the versions
  GET   /v1/models/NAME[/versions/N]/metadata   the signatures
  POST  /v1/models/NAME[/versions/N]:predict    an answer; see json_requests.py

An error is {"error": text} with status 400, 404, 413 or 500.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from aiohttp import web
from google.protobuf import json_format

from trpo_tf.errors import first_line
from trpo_tf.serving.server import LARGEST_REQUEST, json_requests
from trpo_tf.serving.server.model import Model, Refusal

_STATUS = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404}
_LONGEST_NUMBER = 18  # digits of a version that fits into 64 bits


class _Handlers:
    """One method for each kind of request."""

    def __init__(self, model: Model):
        self._model = model

    async def status(self, request: web.Request) -> web.Response:
        """States of the versions."""
        entries = [
            {
                "version": str(number),
                "state": state,
                "status": {"error_code": "UNKNOWN" if text else "OK", "error_message": text},
            }
            for number, state, text in self._model.status(*_asked(request))
        ]
        return web.json_response({"model_version_status": entries})

    async def metadata(self, request: web.Request) -> web.Response:
        """Signatures."""
        version = self._model.get(*_asked(request))
        signatures = {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, definition in version.signatures.items()
        }
        spec = {"name": self._model.name, "signature_name": "", "version": str(version.number)}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    async def predict(self, request: web.Request) -> web.Response:
        """Outputs of a signature, computed in another thread."""
        version = self._model.get(*_asked(request))
        body = await request.read()
        return web.json_response(await asyncio.to_thread(json_requests.answer, version, body))


def _asked(request: web.Request) -> tuple[str, int]:
    """Name and version in the path of a request; version 0 where the path has none."""
    number = request.match_info.get("version", "0")
    if len(number) > _LONGEST_NUMBER or ("version" in request.match_info and int(number) == 0):
        raise Refusal("NOT_FOUND", f"there is no version {number}")
    return request.match_info["name"], int(number)


@web.middleware
async def _errors(request: web.Request, handler) -> web.StreamResponse:
    """Turns exceptions into answers, so that the server goes on."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return web.json_response({"error": str(refusal)}, status=_STATUS[refusal.code])
    except web.HTTPRequestEntityTooLarge:
        return web.json_response({"error": f"a request may have {LARGEST_REQUEST} bytes"}, status=413)
    except web.HTTPException:
        return web.json_response({"error": f"Malformed request: {request.method} {request.path}"}, status=400)
    except Exception as error:
        return web.json_response({"error": f"{type(error).__name__}: {first_line(error)}"}, status=500)


def application(model: Model) -> web.Application:
    """The interface as an application of aiohttp."""
    made, handlers = web.Application(middlewares=[_errors], client_max_size=LARGEST_REQUEST), _Handlers(model)
    for place in (r"/v1/models/{name:[^/:]+}", r"/v1/models/{name:[^/:]+}/versions/{version:\d+}"):
        made.router.add_get(place, handlers.status)
        made.router.add_get(f"{place}/metadata", handlers.metadata)
        made.router.add_post(f"{place}:predict", handlers.predict)
    return made


@contextlib.contextmanager
def listening(model: Model, host: str, port: int) -> Iterator[int]:
    """Answers in a thread of its own while the context is entered; yields the port, a free one for 0.

    Raises:
      OSError: the port is taken.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    runner = web.AppRunner(application(model), access_log=None)
    try:
        run(runner.setup())
        run(web.TCPSite(runner, host, port).start())
        yield runner.addresses[0][1]
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
