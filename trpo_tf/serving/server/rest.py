"""TF Serving's REST interface, version 1, on one model.

  GET   /v1/models/NAME[/versions/N]            the status of the versions
  GET   /v1/models/NAME[/versions/N]/metadata   the signatures
  POST  /v1/models/NAME[/versions/N]:predict    an answer; see json_requests.py

An error is {"error": text} with status 400, 404, 408, 413, 415, 417, 500 or 503.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator

from aiohttp import web
from google.protobuf import json_format

from trpo_tf.errors import described, first_line, one_line
from trpo_tf.serving.saved_model import version_number
from trpo_tf.serving.server import (
    BODY_SECONDS,
    CONNECTIONS,
    GRACE_SECONDS,
    HEADER_SECONDS,
    IDLE_SECONDS,
    LARGEST_REQUEST,
    LONGEST_TEXT,
    json_requests,
)
from trpo_tf.serving.server.model import Model, Refusal

_STATUS = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404}
_THREADS = 4  # requests that are answered at the same time


class _Handlers:
    """One method for each kind of request."""

    def __init__(self, model: Model):
        self._model = model
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "rest")

    async def close(self, _: web.Application) -> None:
        """Lets the threads end after the requests under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise web.HTTPUnsupportedMediaType
        body, loop = await _body(request), asyncio.get_running_loop()
        return web.json_response(await loop.run_in_executor(self._threads, json_requests.answer, version, body))


async def _body(request: web.Request) -> bytes:
    """The body of a request.

    Raises:
      Refusal: it breaks off, or its chunks are none.
      web.HTTPException: it is too large, or takes too long.
    """
    try:
        return await asyncio.wait_for(request.read(), BODY_SECONDS)
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except web.HTTPException:
        raise
    except Exception as error:
        raise Refusal("INVALID_ARGUMENT", f"the body cannot be read: {first_line(error)}") from None


def _asked(request: web.Request) -> tuple[str, int | None]:
    """Name and version in the path of a request; None where the path has no version."""
    text = request.match_info.get("version")
    number = None if text is None else version_number(text)
    if text is not None and number is None:
        raise Refusal("NOT_FOUND", f"there is no version {text}")
    return request.match_info["name"], number


_REASONS = {
    408: f"the body has to arrive within {BODY_SECONDS:.0f} s",
    413: f"a request may have {LARGEST_REQUEST} bytes",
    415: "the server takes no Content-Encoding",
    417: "the server knows no Expect but 100-continue",
}


def _refused(text: str, status: int) -> web.Response:
    """An answer after which the connection ends: what else comes on it is of the refused request."""
    response = web.json_response({"error": text}, status=status)
    response.force_close()
    return response


async def _expect(request: web.Request) -> web.Response | None:
    """Answers the header Expect; a response ends the request."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return _refused(_REASONS[417], 417)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


class _Connection(web.RequestHandler):
    """A connection that ends where no request begins for a while, and whose every error is a line of JSON."""

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop):
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=GRACE_SECONDS,
        )
        self._server, self._timers = server, loop
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """As asyncio.Protocol says."""
        super().connection_made(transport)
        if len(self._server.connections) > CONNECTIONS:
            body = b'{"error": "too many connections"}'
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            transport.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
            transport.close()
        self.expect_within(HEADER_SECONDS)

    def connection_lost(self, exc) -> None:
        """As asyncio.Protocol says."""
        self.expect_within(None)
        super().connection_lost(exc)

    def expect_within(self, seconds: float | None) -> None:
        """Ends the connection unless a request begins within so many seconds; None: takes that back."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None and self.transport is not None:
            self._timer = self._timers.call_later(seconds, self.transport.abort)

    def handle_error(self, request, status=500, exc=None, message=None) -> web.StreamResponse:
        """The answer to what is no HTTP, and to a failure of aiohttp."""
        text = message or (first_line(exc) if exc else "")
        what = "The server failed" if status == 500 else "Malformed request"
        return _refused(one_line(f"{what}: {text}", LONGEST_TEXT), status)


@web.middleware
async def _errors(request: web.Request, handler) -> web.StreamResponse:
    """Turns exceptions into answers, so that the server goes on."""
    connection = request.protocol
    assert isinstance(connection, _Connection)
    connection.expect_within(None)
    try:
        return await handler(request)
    except Refusal as refusal:
        return web.json_response({"error": str(refusal)}, status=_STATUS[refusal.code])
    except (web.HTTPRequestEntityTooLarge, web.HTTPRequestTimeout, web.HTTPUnsupportedMediaType) as refused:
        return _refused(_REASONS[refused.status], refused.status)
    except web.HTTPException:
        text = one_line(f"Malformed request: {request.method} {request.path}", LONGEST_TEXT)
        return web.json_response({"error": text}, status=400)
    except Exception as error:
        return web.json_response({"error": described(error)}, status=500)
    finally:
        connection.expect_within(IDLE_SECONDS)


def application(model: Model) -> web.Application:
    """The interface as an application of aiohttp."""
    made, handlers = web.Application(middlewares=[_errors], client_max_size=LARGEST_REQUEST), _Handlers(model)
    for place in (r"/v1/models/{name:[^/:]+}", r"/v1/models/{name:[^/:]+}/versions/{version:[0-9]+}"):
        made.router.add_get(place, handlers.status, expect_handler=_expect)
        made.router.add_get(f"{place}/metadata", handlers.metadata, expect_handler=_expect)
        made.router.add_post(f"{place}:predict", handlers.predict, expect_handler=_expect)
    made.on_cleanup.append(handlers.close)
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

    runner = web.AppRunner(application(model), shutdown_timeout=GRACE_SECONDS)
    try:
        run(runner.setup())
        server = runner.server
        assert server is not None
        listener = run(loop.create_server(lambda: _Connection(server, loop), host, port))
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            loop.call_soon_threadsafe(listener.close)
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
