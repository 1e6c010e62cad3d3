"""HTTP server of one critic. This file needs only Python 3.8 and numpy, so that any critic's environment can run it.

    python server.py my_critic.py --port 8000                # a function `load(path, device)` in that file
    python server.py my_package.my_module:make --device cuda --path weights/

The function returns a critic with:
    name: str; dimensions: names of its d scores.
    __call__(videos, prompts, fps): b uint8 arrays (f, h, w, 3), b prompts, and the frame rate of those frames; returns
        float (b, d). It is called from one thread, one call at a time. It may raise if it cannot score a clip.
    frames, frame_rate (optional): number of frames that it uses, spread evenly, or frames per second; None = all.
    chosen(frames, fps) (optional): indices of the frames that it uses, for any other choice. It then receives only
        these, with their frame rate, and must choose all of them.
    revision (optional): revision of its weights. card (optional): further facts, a dict for JSON.

The protocol is HTTP/1.1, with `Authorization: Bearer TOKEN` if the server has a token:
    GET /health: JSON: critic, revision, dimensions, frames, frame_rate, card, ready (False while weights are loaded),
        clips and largest (maximum clips and bytes of a request), free (places in the queue), scored (clips so far).
    GET /frames?count=81&fps=16: JSON: indices of the frames of such a clip to send, and their fps.
    POST /score: a safetensors file of uint8 tensors "0", "1", ... (f, h, w, 3), or one "videos" (b, f, h, w, 3); its
        metadata are `request`, an id chosen by the client, `prompts`, a JSON list of b strings, and `fps`, a number.
        The response is JSON: request, critic, revision, dimensions, and `items`, b of {"scores": [d numbers]} or
        {"error": text}. A request that is sent again is not scored again, and gets the same response.
    Errors are {"error": text}: 400 invalid request, 401 wrong token, 409 id used for other clips, 413 too large, 503
        queue full or critic not ready (retry after `Retry-After` seconds), 504 the critic took too long.
"""

from __future__ import annotations

import argparse
import hmac
import importlib
import importlib.util
import ipaddress
import json
import math
import os
import queue
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import numpy as np

TOKEN = "BESTTAKE_TOKEN"
"""Environment variable with the token. (A command line could be read by every user of the machine.)"""

HEADER_LIMIT = 1 << 20
"""Maximum bytes of a request's header, prompts included."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of the server; sizes in bytes, times in seconds."""

    queue: int = 8
    """Size of the queue, including the request being scored; bounds memory together with `largest`."""
    clips: int = 16
    """Maximum clips of a request."""
    largest: int = 512 << 20
    """Maximum bytes of a request."""
    connections: int = 128
    wait: float = 0.5
    """Wait for a place in the queue before 503; the body is not read meanwhile."""
    arrival: float = 60.0
    """Time-out for receiving the body of a request."""
    idle: float = 120.0
    """Time-out for the next request of a connection."""
    answer: float = 600.0
    """Time-out for the critic's scores."""
    remembered: int = 1024
    """Number of responses kept for requests that are sent again."""
    grace: float = 30.0
    """Time for open requests to finish on shutdown."""


class Request(NamedTuple):
    """The content of `POST /score`."""

    id: str
    videos: list[np.ndarray]
    """b of uint8 (f, h, w, 3)."""
    prompts: list[str]
    fps: float
    """Frame rate of these frames."""
    header: bytes
    """The raw header, which is the same if the request is sent again."""


class Refusal(Exception):  # noqa: N818
    """A response other than scores; not always an error."""

    def __init__(self, status: int, reason: str, after: float | None = None, close: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.after, self.close = status, reason, after, close


def pack(id: str, videos: Sequence[np.ndarray], prompts: Sequence[str], fps: float) -> list[Any]:
    """The body of a request, a safetensors file, as buffers to send one after the other without copies.

    Args:
        videos: C-contiguous uint8 arrays (f, h, w, 3).
    """
    header: dict[str, Any] = {"__metadata__": {"request": id, "prompts": json.dumps(list(prompts)), "fps": repr(fps)}}
    start = 0
    for i, video in enumerate(videos):
        header[str(i)] = {"dtype": "U8", "shape": list(video.shape), "data_offsets": [start, start + video.nbytes]}
        start += video.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(video.data.cast("B") for video in videos)]


def unpack(body: memoryview) -> Request:
    """Parse a request; its videos are views of `body`.

    Raises:
        ValueError: it is not a safetensors file, or has other tensors or metadata than a request.
    """
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > min(HEADER_LIMIT, len(body) - 8):
        raise ValueError("the body is not a safetensors file, or it is truncated")
    text = bytes(body[8 : 8 + size])
    try:
        header = json.loads(text)
        about = header.pop("__metadata__")
        id, prompts, fps = about["request"], json.loads(about["prompts"]), float(about["fps"])
        tensors = {name: _tensor(name, entry, body[8 + size :]) for name, entry in header.items()}
        one = set(tensors) == {"videos"}
        videos = list(tensors["videos"]) if one else [tensors[str(i)] for i in range(len(tensors))]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"the body is not a request: its header or metadata are wrong ({error!r})") from error
    if not videos or any(video.ndim != 4 or video.shape[-1] != 3 for video in videos):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        raise ValueError(f"tensors are {shapes}, expected '0', '1', ... (f, h, w, 3), or 'videos' (b, f, h, w, 3)")
    if not isinstance(prompts, list) or len(prompts) != len(videos) or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts are {str(prompts)[:80]}, expected a list of {len(videos)} strings, one per clip")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}, expected a positive number")
    if not isinstance(id, str) or not 0 < len(id) <= 200:
        raise ValueError("metadata 'request' must be an id of 1 to 200 characters")
    return Request(id, videos, prompts, fps, text)


def _tensor(name: str, entry: dict[str, Any], data: memoryview) -> np.ndarray:
    shape, (start, end) = [int(side) for side in entry["shape"]], entry["data_offsets"]
    if entry["dtype"] != "U8" or min(shape, default=0) < 1 or not 0 <= start <= end <= len(data):
        raise ValueError(f"tensor {name!r} is {entry['dtype']} {shape} at {start}:{end} of {len(data)} bytes")
    return np.frombuffer(data[start:end], np.uint8).reshape(shape)


def score_request(critic: Any, videos: list[np.ndarray], prompts: list[str], fps: float) -> list[dict[str, Any]]:
    """The critic's result for each clip: {"scores": [d finite numbers]} or {"error": text}.

    If it fails on the batch, clips are scored one by one, so that one bad clip does not affect the others.
    """
    try:
        values = np.asarray(critic(videos, prompts, fps), np.float32)
        if values.shape != (len(videos), len(critic.dimensions)):
            expected = f"({len(videos)}, {len(critic.dimensions)})"
            raise ValueError(f"it returned scores of shape {values.shape}, expected {expected}")
    except Exception as error:  # any error of the critic is returned to the client
        if len(videos) > 1:
            return [score_request(critic, videos[i : i + 1], prompts[i : i + 1], fps)[0] for i in range(len(videos))]
        traceback.print_exc()
        return [{"error": f"{type(error).__name__}: {error}"}]
    return [_item(row, critic.dimensions) for row in values]


def _item(row: np.ndarray, dimensions: Sequence[str]) -> dict[str, Any]:
    wrong = [f"{row[i]} for {dimensions[i]!r}" for i in range(len(row)) if not np.isfinite(row[i])]
    return {"error": f"it returned {', '.join(wrong)}"} if wrong else {"scores": [float(value) for value in row]}


def select_frames(critic: Any, frames: int, fps: float) -> tuple[list[int], float]:
    """Indices of the frames of a clip that a critic uses, and their frame rate."""
    most, rate = getattr(critic, "frames", None), getattr(critic, "frame_rate", None)
    if callable(getattr(critic, "chosen", None)):
        chosen = [int(place) for place in critic.chosen(frames, fps)]
    elif rate is not None and rate < fps:
        count = max(1, int(frames / fps * rate + 1e-6))
        return [min(frames - 1, round(k * fps / rate)) for k in range(count)], rate
    elif rate is None and most is not None and most < frames:
        chosen = [k * (frames - 1) // max(1, most - 1) for k in range(most)]
    else:
        chosen = list(range(frames))
    return chosen, fps * len(chosen) / frames


class Job:
    """A request that is queued or answered."""

    def __init__(self, request: Request):
        self.header = request.header
        self.request: Request | None = request
        self.items: list[dict[str, Any]] | None = None
        self.done = threading.Event()


class ScoringQueue:
    """The critic's thread with a bounded queue, and the recent responses."""

    def __init__(self, make: Callable[[], Any], limits: Limits):
        self.make, self.limits = make, limits
        self.critic: Any = None
        self.failure: str | None = None
        self.scored = 0
        self.places = threading.BoundedSemaphore(limits.queue)
        self.stopping = threading.Event()
        self.stop_requests: queue.SimpleQueue[str] = (
            queue.SimpleQueue()
        )  # SimpleQueue.put may be called in a signal handler
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    @property
    def free(self) -> int:
        return self.places._value

    def submit(self, request: Request) -> Job:
        """Queue a request that has acquired a place; if it was sent before, return its job and release the place."""
        with self._lock:
            job = self._jobs.get(request.id)
            if job is not None and job.header != request.header:
                raise Refusal(
                    409, f"request {request.id!r} was sent before with other clips; use a new id for every request"
                )
            if job is None:
                job = self._jobs[request.id] = Job(request)
                self._waiting.put(job)
            else:
                self.places.release()
            return job

    def close(self) -> None:
        """End the thread after the queued jobs."""
        self._waiting.put(None)

    def run(self) -> None:
        """Load the critic, then score the jobs one after the other."""
        try:
            self.critic = checked_critic(self.make())
        except Exception as error:  # of arbitrary code
            if not isinstance(error, ValueError):  # whose message is enough
                traceback.print_exc()
            self.failure = f"the critic could not be loaded: {type(error).__name__}: {error}"
            self.stop_requests.put(self.failure)
            return
        for job in iter(self._waiting.get, None):
            assert job.request is not None
            items = score_request(self.critic, job.request.videos, job.request.prompts, job.request.fps)
            with self._lock:
                self.scored += len(items)
                job.items, job.request = items, None  # free the frames
                self._forget()
            job.done.set()
            self.places.release()

    def _forget(self) -> None:
        while len(self._jobs) > self.limits.remembered and next(iter(self._jobs.values())).items is not None:
            self._jobs.popitem(last=False)


def checked_critic(critic: Any) -> Any:
    """Return the critic; ValueError if it lacks a required attribute."""
    name, dimensions = getattr(critic, "name", None), getattr(critic, "dimensions", None)
    if not isinstance(name, str) or not dimensions or not all(isinstance(d, str) for d in dimensions):
        raise ValueError(
            f"name is {name!r} and dimensions {dimensions!r}; a critic needs a name, and the names of its dimensions"
        )
    if not callable(critic):
        raise ValueError(f"critic {name} is not callable; add __call__(videos, prompts, fps)")
    json.dumps(getattr(critic, "card", {}), allow_nan=False)
    return critic


class CriticServer(ThreadingHTTPServer):
    """Binds at once and loads the critic in a thread; until it is loaded, `/health` says that it is not ready.

    Args:
        make: creates the critic.
        port: 0 = any free port; see `url`.

    Raises:
        ValueError: the host is not a loopback address, and there is no token.
        OSError: the address is in use or not available.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        make: Callable[[], Any],
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
    ):
        if not token and not _is_loopback(host):
            raise ValueError(
                f"{host} is reachable from other machines, but there is no token; set the environment variable "
                f"{TOKEN} to the same secret on server and clients, or bind to 127.0.0.1"
            )
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.token, self.limits = token, limits or Limits()
        self.scoring_queue = ScoringQueue(make, self.limits)
        self._connections = threading.BoundedSemaphore(self.limits.connections)
        self._busy = threading.Condition()
        self._open = 0
        super().__init__((host, port), Handler)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    def server_bind(self) -> None:  # without HTTPServer's slow lookup of the host name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def start(self) -> CriticServer:
        """Load the critic and serve, in two threads."""
        threading.Thread(target=self.scoring_queue.run, daemon=True).start()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> bool:
        """Stop accepting requests, finish the open ones within `grace` seconds, close; whether all were answered."""
        self.scoring_queue.stopping.set()
        self.shutdown()
        with self._busy:
            answered = self._busy.wait_for(lambda: not self._open, self.limits.grace)
        self.scoring_queue.close()
        self.server_close()
        return answered

    def __enter__(self) -> CriticServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def open_request(self, by: int) -> None:
        with self._busy:
            self._open += by
            self._busy.notify_all()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.sendall(b"HTTP/1.1 503 Too many connections\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # ignore clients that disconnect
            super().handle_error(request, client_address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: CriticServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.timeout = self.server.limits.idle  # type: ignore[misc]
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        """No access log; a critic's errors are printed where they occur."""

    def do_GET(self) -> None:
        self._reply({"/health": self._health, "/frames": self._frames})

    def do_POST(self) -> None:
        self._reply({"/score": self._score})

    def _reply(self, pages: dict[str, Callable[[], dict[str, Any]]]) -> None:
        self.server.open_request(1)
        try:
            try:
                page = pages.get(self.path.partition("?")[0])
                if page is None:
                    raise Refusal(404, f"there is no {self.command} {self.path}; see /health and /score", close=True)
                self._check_token()
                self._send(200, page())
            except Refusal as refusal:
                if refusal.close:
                    self.close_connection = True
                self._send(refusal.status, {"error": refusal.reason}, refusal.after)
        finally:
            self.server.open_request(-1)

    def _send(self, status: int, answer: dict[str, Any], after: float | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if after is not None:
            self.send_header("Retry-After", str(math.ceil(after)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _check_token(self) -> None:
        expected = f"Bearer {self.server.token}".encode()
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if self.server.token and not hmac.compare_digest(given, expected):
            raise Refusal(401, f"the token is missing or wrong; set ${TOKEN} to the server's token", close=True)

    def _health(self) -> dict[str, Any]:
        scoring_queue, limits = self.server.scoring_queue, self.server.limits
        return {
            **_who(scoring_queue.critic),
            "frames": getattr(scoring_queue.critic, "frames", None),
            "frame_rate": getattr(scoring_queue.critic, "frame_rate", None),
            "card": getattr(scoring_queue.critic, "card", {}),
            "ready": scoring_queue.critic is not None and not scoring_queue.stopping.is_set(),
            "clips": limits.clips,
            "largest": limits.largest,
            "free": scoring_queue.free,
            "scored": scoring_queue.scored,
        }

    def _frames(self) -> dict[str, Any]:
        if self.server.scoring_queue.critic is None:
            raise Refusal(503, "the critic is not ready", 1)
        try:
            query = dict(parse_qsl(urlsplit(self.path).query))
            count, fps = int(query["count"]), float(query["fps"])
            if not (0 < count < 1_000_000 and 0 < fps < math.inf):
                raise ValueError(f"count is {count}, fps {fps}")
        except (KeyError, ValueError) as error:
            raise Refusal(400, f"expected /frames?count=81&fps=16, not {self.path} ({error!r})") from error
        chosen, rate = select_frames(self.server.scoring_queue.critic, count, fps)
        return {"frames": chosen, "fps": rate}

    def _score(self) -> dict[str, Any]:
        scoring_queue, limits = self.server.scoring_queue, self.server.limits
        length = self._length()
        if length > limits.largest:
            raise Refusal(413, f"the request has {length} bytes, the maximum is {limits.largest}", close=True)
        if scoring_queue.stopping.is_set() or scoring_queue.critic is None:
            self._read(length, keep=False)
            reason = "the critic is not ready" if scoring_queue.critic is None else "the server is stopping"
            raise Refusal(503, reason, 1, close=scoring_queue.stopping.is_set())
        if not scoring_queue.places.acquire(timeout=limits.wait):
            self._read(length, keep=False)
            raise Refusal(503, f"the queue of {limits.queue} requests is full", 1)
        try:
            request = unpack(self._read(length))
            if len(request.videos) > limits.clips:
                raise Refusal(413, f"the request has {len(request.videos)} clips, the maximum is {limits.clips}")
            job = scoring_queue.submit(request)
        except BaseException as error:
            scoring_queue.places.release()
            if isinstance(error, ValueError):
                raise Refusal(400, str(error)) from error
            raise
        if not job.done.wait(limits.answer):
            raise Refusal(504, f"the critic has not answered for {limits.answer:g} s; retry later", 1)
        return {"request": request.id, **_who(scoring_queue.critic), "items": job.items}

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refusal(411, "the request needs a Content-Length", close=True)
        return int(text)

    def _read(self, length: int, keep: bool = True) -> memoryview:
        """The body. With `keep` False it is read and discarded, since clients send all before they read a response."""
        until = time.monotonic() + self.server.limits.arrival
        self.connection.settimeout(self.server.limits.arrival)
        body = np.empty(length if keep else min(length, CHUNK), np.uint8).data
        got = 0
        while got < length:
            place = body[got : got + CHUNK] if keep else body[: length - got]
            count = self.rfile.readinto1(place)  # type: ignore[attr-defined]
            if not count:
                raise ConnectionResetError("the client has disconnected")
            got += count
            if time.monotonic() > until:
                raise TimeoutError("the client is too slow")
        self.connection.settimeout(self.server.limits.idle)
        return body


def _who(critic: Any) -> dict[str, Any]:
    dimensions = None if critic is None else list(critic.dimensions)
    revision = str(getattr(critic, "revision", "unknown"))
    return {"critic": getattr(critic, "name", None), "revision": revision, "dimensions": dimensions}


def find_factory(name: str) -> Callable[..., Any]:
    """Import the function of `module:function`, `file.py:function` or `file.py` (its `load` or `make`).

    Raises:
        ValueError: there is none.
    """
    place, _, function = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        else:
            module = importlib.import_module(place)
        return getattr(module, function or ("load" if hasattr(module, "load") else "make"))
    except (ImportError, FileNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no critic {name!r} ({error}); give module:function, or file.py:function") from error


def serve(
    make: Callable[[], Any],
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    announce: Path | None = None,
    with_parent: bool = False,
) -> int:
    """Serve until SIGTERM, SIGINT, or the end of the parent. Returns the exit status: 0 = clean stop, 1 = failure.

    Args:
        announce: file to write {"url", "pid"} to once the address is bound.
        with_parent: stop when standard input closes, which happens when the parent process dies.
    """
    server = CriticServer(make, host, port, os.environ.get(TOKEN), limits)
    scoring_queue = server.scoring_queue

    def follow_parent() -> None:
        sys.stdin.buffer.read()
        scoring_queue.stop_requests.put("the parent process has ended")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scoring_queue.stop_requests.put("by a signal"))
    if with_parent:
        threading.Thread(target=follow_parent, daemon=True).start()
    server.start()
    print(f"serving at {server.url}; stop with Ctrl-C", flush=True)
    if announce:
        part = announce.with_suffix(".part")
        part.write_text(json.dumps({"url": server.url, "pid": os.getpid()}))
        part.replace(announce)
    why = scoring_queue.stop_requests.get()
    answered = server.stop()
    print(f"stopped: {why}", file=sys.stderr, flush=True)
    return 0 if answered and not scoring_queue.failure else 1


def main(arguments: list[str] | None = None) -> int:
    """The command line of this file."""
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    limits = Limits()
    parser = argparse.ArgumentParser(description="Serve one critic over HTTP.")
    parser.add_argument("critic", help="module:function or file.py[:function], called with (path, device)")
    parser.add_argument("--path", help="path of the weights; by default the published ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1", help=f"any other than loopback needs a token in ${TOKEN}")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free port")
    parser.add_argument("--queue", type=int, default=limits.queue, help="size of the request queue")
    parser.add_argument("--clips", type=int, default=limits.clips, help="maximum clips of a request")
    parser.add_argument("--largest", type=int, default=limits.largest >> 20, help="maximum MiB of a request")
    parser.add_argument("--answer", type=float, default=limits.answer, help="time-out for the critic's scores, seconds")
    parser.add_argument("--grace", type=float, default=limits.grace, help="seconds for open requests on shutdown")
    parser.add_argument("--announce", type=Path, help="file to write the address to")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input closes")
    args = parser.parse_args(arguments)
    limits = Limits(
        queue=args.queue, clips=args.clips, largest=args.largest << 20, answer=args.answer, grace=args.grace
    )

    def make() -> Any:
        return find_factory(args.critic)(path=args.path, device=args.device)

    try:
        return serve(make, args.host, args.port, limits, args.announce, args.with_parent)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a critic that hangs must not keep the process
