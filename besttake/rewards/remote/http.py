"""HTTP client of one server: connection pool, time-outs and retries."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT = 60.0
"""Maximum seconds between two tries."""

CHUNK = 256 * 1024
"""Bytes of a request that are sent at a time."""


@dataclass(frozen=True)
class RetryPolicy:
    """Time-outs and retries."""

    answer: float = 600.0
    """Read time-out in seconds; also how long to wait for a busy or loading server."""
    connect: float = 10.0
    """Connect time-out in seconds, and read time-out for requests without a body."""
    tries: int = 6
    """Consecutive failures after which the server is given up."""
    pause: float = 0.5
    """Seconds before the second try, doubled for each further one; the server's `Retry-After` takes precedence."""

    def delay(self, fault: NoAnswerError, failures: int) -> float:
        """Seconds to wait after the `failures`-th consecutive failure."""
        own = self.pause * 2 ** max(0, failures - 1)
        return min(LONGEST_WAIT, own if fault.retry_after is None else fault.retry_after)

    def call(self, request: Callable[[], T], on_retry: Callable[[NoAnswerError], None]) -> T:
        """The result of `request`, which is repeated while it raises `NoAnswerError`.

        Args:
            on_retry: called before each repetition.

        Raises:
            NoAnswerError: the last of `tries` failures, or the server is still busy after `answer` seconds.
        """
        until, failures = time.monotonic() + self.answer, 0
        while True:
            try:
                return request()
            except NoAnswerError as error:
                busy, fault = isinstance(error, ServerBusyError), error
            failures += not busy
            if failures >= self.tries or (busy and time.monotonic() >= until):
                raise fault
            on_retry(fault)
            time.sleep(self.delay(fault, failures))


class NoAnswerError(Exception):
    """A request failed, but a retry may succeed.

    Attributes:
        retry_after: seconds to wait according to the server's `Retry-After`, if it sent one.
    """

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


class ConnectionLostError(NoAnswerError):
    """The connection broke; the server may have received the request."""


class ServerBusyError(NoAnswerError):
    """The server is full or loading."""


@dataclass(frozen=True)
class Response:
    """A complete response with a status below 500."""

    status: int
    text: str

    def json(self) -> dict[str, Any]:
        """
        Raises:
            NoAnswerError: the response is not a JSON object.
        """
        try:
            content = json.loads(self.text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise NoAnswerError(f"it answered {self.status} with invalid JSON: {self.text[:60]!r}")
        return content


class Client:
    """A connection pool to one server; many threads may use it at once."""

    def __init__(
        self,
        url: str,
        token: str | None,
        retry: RetryPolicy,
        busy: Sequence[int] = (),
        transient: Sequence[int] = (),
        proxies: bool = False,
    ):
        """
        Args:
            url: base URL, starting with http:// or https://.
            token: sent as `Authorization: Bearer`.
            busy: statuses that mean that the server is full or loading.
            transient: statuses below 500 after which a retry may succeed.
            proxies: whether to use the proxies set in the environment.
        """
        self.url, self.retry = url.rstrip("/"), retry
        self._busy, self._transient = tuple(busy), tuple(transient)
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
            trust_env=proxies,
        )

    def request(self, method: str, path: str, body: Sequence[Any] = (), content_type: str = "") -> Response:
        """Send a request.

        Args:
            body: byte buffers, sent one after the other.

        Raises:
            NoAnswerError: there is no complete response, or its status is transient or 500 and above. It is a
                `ConnectionLostError` if the connection broke, a `ServerBusyError` if the server is busy.
        """
        size = str(sum(len(part) for part in body))
        silence = self.retry.answer if body else self.retry.connect
        try:
            answer = self._http.request(
                method,
                self.url + path,
                content=_chunks(body) if body else None,
                headers={"Content-Length": size, "Content-Type": content_type} if body else {},
                timeout=httpx2.Timeout(silence, connect=self.retry.connect, pool=None),
            )
        except httpx2.TimeoutException as error:
            raise NoAnswerError("it did not answer in time") from error
        except httpx2.HTTPError as error:
            raise ConnectionLostError(f"the connection broke ({error!r})") from error
        status, retry_after = answer.status_code, _seconds(answer.headers.get("Retry-After"))
        fault = f"{status} {answer.reason_phrase}: {answer.text[:300]}"
        if status in self._busy:
            raise ServerBusyError(f"it is full or loading ({fault})", retry_after or 1.0)
        if status >= 500 or status in self._transient:
            raise NoAnswerError(f"it answered {fault}", retry_after)
        return Response(status, answer.text)


def _chunks(body: Sequence[Any]) -> Iterator[Any]:
    """The bytes of buffers in small pieces: h11 copies each piece, which is fast only within the CPU's cache."""
    for part in body:
        for start in range(0, len(part), CHUNK):
            yield memoryview(part)[start : start + CHUNK]


def _seconds(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header, at least 0.05; None for a date or no header."""
    try:
        return None if header is None else max(0.05, float(header))
    except ValueError:
        return None
