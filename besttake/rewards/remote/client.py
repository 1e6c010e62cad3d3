"""A critic over HTTP, on one or several servers (see `server.py`): the same call as any other.

Only the frames that the critic looks at are sent, as raw uint8. A batch is spread over the servers, each of which takes
its next share when it has answered the last. What a server that dies, hangs or answers nonsense had taken is given to
the others, and asked again with the same id, so that a server which did score it does not score it twice.
"""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from besttake.rewards.remote.server import HEADER_LIMIT, TOKEN, pack
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT = 30.0
"""Seconds between two tries, at most."""
LARGEST_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RetryPolicy:
    """How long a client waits, and how often it tries."""

    answer: float = 600.0
    """Seconds for the answer to a request, and for a server that is loading or full."""
    connect: float = 10.0
    """Seconds for a connection, and for a server's word on its health."""
    tries: int = 6
    """Of a server in a row, before it is given up; it is tried afresh with the next batch."""
    pause: float = 0.5
    """Seconds before the second try; twice as long before each further one."""


class Remote:
    """A `Reward` on servers of one critic.

    Raises:
        ConnectionError: no server answers. One that does not is passed over with a warning if another does.
        ValueError: a URL is none, the token is wrong, or the servers are not of one critic and revision.
    """

    differentiable = False

    def __init__(self, urls: str | Sequence[str], token: str | None = None, patience: RetryPolicy | None = None):
        """
        Args:
            urls: "http://host:port", or several, in a list or separated by commas.
            token: that of the servers; by default in the environment variable BESTTAKE_TOKEN.
        """
        urls = urls.split(",") if isinstance(urls, str) else urls
        self.patience, token = patience or RetryPolicy(), token or os.environ.get(TOKEN)
        self.servers = [Server(url.strip(), token, self.patience) for url in urls]
        if not self.servers:
            raise ValueError("a remote critic needs the URL of a server, such as http://127.0.0.1:8000")
        said = _agreed(self.servers)
        self.name, self.revision, self.dimensions = said["critic"], said["revision"], tuple(said["dimensions"])
        self._clips, self._largest = said["clips"], said["largest"]
        self.card = _card(said)
        self._turns = itertools.count()
        self._wishes: dict[tuple[int, float], tuple[list[int], float]] = {}

    @property
    def identity(self) -> str:
        """What decides a score besides the name."""
        return self.revision

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are none, or the critic cannot score one of them: the message names critic, URL,
                prompt and dimensions.
            ConnectionError: no server has answered within the limits: it names the same.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        shares = self._shares(videos.detach(), prompts, fps)
        batch = Batch(shares, len(self.servers), self.patience.tries)
        first = next(self._turns) % len(self.servers)  # so that small batches are spread, too
        with ThreadPoolExecutor(len(self.servers)) as pool:
            order = self.servers[first:] + self.servers[:first]
            lanes = [pool.submit(self._serve, server, batch) for server in order]
        for lane in lanes:
            lane.result()
        if batch.error:
            raise batch.error
        values = np.empty((len(prompts), len(self.dimensions)), np.float32)
        for share in shares:
            assert share.values is not None
            values[share.rows] = share.values
        return Score(torch.from_numpy(values).to(videos.device), self.dimensions)

    def _shares(self, videos: Video, prompts: list[str], fps: float) -> list[SubBatch]:
        """The batch cut into requests: each server gets one, unless they are too large."""
        chosen, rate = self._wish(videos.shape[1], fps)
        clip = len(chosen) * math.prod(videos.shape[2:])
        room = self._largest - HEADER_LIMIT
        if clip > room:
            raise ValueError(
                f"critic {self.name}: {len(chosen)} frames of {tuple(videos.shape[-2:])} are {clip} bytes, but its "
                f"server takes {self._largest}; start it with --largest {2 * clip // 2**20 + 2} (MiB)"
            )
        size = min(self._clips, room // clip, -(-len(prompts) // len(self.servers)))
        rows = [slice(start, start + size) for start in range(0, len(prompts), size)]
        return [
            SubBatch(self.name, row, videos[row], [str(prompt) for prompt in prompts[row]], chosen, rate)
            for row in rows
        ]

    def _wish(self, frames: int, fps: float) -> tuple[list[int], float]:
        """Which frames of such clips the critic looks at, and how many a second these are: asked once."""
        faults = []
        for server in [] if (frames, fps) in self._wishes else self.servers:
            try:
                self._wishes[frames, fps] = server.patiently(partial(server.frames, frames, fps))
                break
            except NoAnswerError as error:
                faults.append(f"{server.url}: {error}")
        if (frames, fps) not in self._wishes:
            raise ConnectionError(
                f"critic {self.name} does not say which frames it wants, and gives no {', '.join(self.dimensions)}: "
                + "; ".join(faults)
            )
        return self._wishes[frames, fps]

    def _serve(self, server: Server, batch: Batch) -> None:
        """Have one server answer what it can of a batch, until nothing is left or it fails too often."""
        failures, busy_since = 0, None
        with server.connected() as line:
            while share := batch.take():
                try:
                    share.values = self._ask(server, line, share)
                except ServerBusyError as busy:
                    busy_since = busy_since or time.monotonic()
                    if time.monotonic() - busy_since < self.patience.answer:
                        batch.put_back(share)
                        batch.pause(busy.after)
                        continue
                    failures, error = self.patience.tries, str(busy)
                except NoAnswerError as fault:
                    failures, error = failures + 1, str(fault)
                except Exception as fault:  # of whatever kind: the other servers' threads must not wait for this one
                    batch.fail(fault)
                    return
                else:
                    failures, busy_since = 0, None
                    batch.answered()
                    continue
                share.tries += 1
                log.warning("critic %s at %s: %s", self.name, server.url, error)
                said = f"critic {self.name} at {server.url} gave no {self._about(share)}: {error} (try {share.tries})"
                batch.put_back(share, ConnectionError(said))
                if failures >= self.patience.tries:
                    batch.leave()
                    return
                batch.pause(min(LONGEST_WAIT, self.patience.pause * 2 ** (failures - 1)))

    def _ask(self, server: Server, line: http.client.HTTPConnection, share: SubBatch) -> np.ndarray:
        """Scores (rows, dimensions) of a share. A lost answer is asked for once more where it is remembered."""
        try:
            status, answer = server.ask(line, "POST", "/score", share.body())
        except ConnectionLostError:
            status, answer = server.ask(line, "POST", "/score", share.body())
        if status != 200:
            raise ValueError(f"critic {self.name} at {server.url} refused the request: {answer.get('error', status)}")
        found = (answer.get("critic"), answer.get("revision"), answer.get("dimensions"))
        if found != (self.name, self.revision, list(self.dimensions)):
            raise ValueError(
                f"{server.url} now serves critic {found[0]!r}, revision {found[1]!r}, dimensions {found[2]}; it served "
                f"{self.name!r}, revision {self.revision!r}, dimensions {self.dimensions}: start that one again"
            )
        items = answer.get("items")
        if answer.get("request") != share.id or not isinstance(items, list) or len(items) != len(share.prompts):
            raise NoAnswerError("its answer is to another request, or not whole")
        return np.array([self._row(server, item, share, i) for i, item in enumerate(items)], np.float32)

    def _row(self, server: Server, item: Any, share: SubBatch, i: int) -> list[float]:
        """The scores of one clip, all finite."""
        where = f"critic {self.name} at {server.url}, the video of {share.prompts[i]!r}"
        if not isinstance(item, dict) or not ("scores" in item or "error" in item):
            raise NoAnswerError(f"its answer of {share.prompts[i]!r} is neither scores nor an error: {str(item)[:80]}")
        if "error" in item:
            raise ValueError(f"{where}: no {', '.join(self.dimensions)}: {item['error']}")
        scores = item["scores"]
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or len(scores) != len(self.dimensions):
            raise NoAnswerError(
                f"its scores of {share.prompts[i]!r} are {str(scores)[:80]}, not {len(self.dimensions)}"
            )
        for dimension, score in zip(self.dimensions, scores, strict=True):
            if not abs(score) <= LARGEST_SCORE:
                raise ValueError(f"{where}: it returned {score} for {dimension!r}; a score must be finite")
        return scores

    def _about(self, share: SubBatch) -> str:
        more = f" (and {len(share.prompts) - 1} more)" if len(share.prompts) > 1 else ""
        return f"{', '.join(self.dimensions)} of the video of {share.prompts[0]!r}{more}"


class NoAnswerError(Exception):
    """A server failed to answer; another try may do."""


class ConnectionLostError(NoAnswerError):
    """The connection broke: perhaps the request arrived, and only the answer did not."""


class ServerBusyError(NoAnswerError):
    """The server is full or loading; it said when to come back."""

    def __init__(self, reason: str, after: float):
        super().__init__(reason)
        self.after = after


class Server:
    """One URL.

    Raises:
        ValueError: it is not http:// or https:// with a host.
    """

    def __init__(self, url: str, token: str | None, patience: RetryPolicy):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a critic's server; expected such as http://127.0.0.1:8000")
        self.url, self.patience = url.rstrip("/"), patience
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def connected(self) -> closing[http.client.HTTPConnection]:
        """A connection for one thread; it is opened when first used, and again after it broke."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return closing(kind(self._host, self._port, timeout=self.patience.connect))

    def ask(
        self, line: http.client.HTTPConnection, method: str, path: str, body: list[Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a whole answer.

        Raises:
            Unanswered: there is none, or it is broken, or that of a server in trouble; `Lost` if the connection broke,
                `Busy` if it said to come back.
        """
        headers = dict(self._headers)
        if body is not None:
            headers |= {
                "Content-Length": str(sum(len(part) for part in body)),
                "Content-Type": "application/octet-stream",
            }
        try:
            if line.sock is None:
                line.connect()
            line.sock.settimeout(self.patience.connect if body is None else self.patience.answer)
            line.request(method, self._prefix + path, body, headers)
            answer = line.getresponse()
            content = answer.read()
        except TimeoutError as error:
            line.close()
            raise NoAnswerError("it did not answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            line.close()
            raise ConnectionLostError(f"the connection broke ({error!r})") from error
        if answer.status == 503:
            raise ServerBusyError(
                f"it was full or loading for {self.patience.answer:g} s", _seconds(answer.getheader("Retry-After"))
            )
        try:
            said = json.loads(content)
            if not isinstance(said, dict):
                raise ValueError("not an object")
        except ValueError as error:
            line.close()
            raise NoAnswerError(f"it answered {answer.status} and garbage: {content[:60]!r}") from error
        if answer.status >= 500:
            raise NoAnswerError(f"it answered {answer.status}: {said.get('error', '')}")
        return answer.status, said

    def patiently(self, ask: Callable[[], T]) -> T:
        """An answer of this server, asked for until it is there, within the limits.

        Raises:
            Unanswered: it does not answer, or is not ready, within the limits.
        """
        until, failures = time.monotonic() + self.patience.answer, 0
        fault: NoAnswerError
        while True:
            try:
                return ask()
            except ServerBusyError as error:
                fault, wait = error, error.after
            except NoAnswerError as error:
                failures += 1
                fault, wait = error, min(LONGEST_WAIT, self.patience.pause * 2 ** (failures - 1))
            if failures >= self.patience.tries or time.monotonic() > until:
                raise fault
            log.info("waiting for the critic's server at %s: %s", self.url, fault)
            time.sleep(wait)

    def health(self) -> dict[str, Any]:
        """What it says of itself, if it is ready; `Unanswered` if not, ValueError if it refuses the token."""
        said = self._get("/health")
        if said.get("ready") is False:
            raise ServerBusyError("it is still loading its critic", 1.0)
        return _checked_health(said)

    def frames(self, count: int, fps: float) -> tuple[list[int], float]:
        """Which frames of a clip of `count` it wants, and their fps; `Unanswered` if it does not say."""
        said = self._get(f"/frames?count={count}&fps={fps}")
        places: Any = said.get("frames")
        rate: Any = said.get("fps")
        listed = isinstance(places, list) and bool(places) and all(type(i) is int and 0 <= i < count for i in places)
        if not listed or type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise NoAnswerError(f"it wants frames {str(places)[:80]} at {rate} a second, of {count}")
        return places, float(rate)

    def _get(self, path: str) -> dict[str, Any]:
        with self.connected() as line:
            status, said = self.ask(line, "GET", path)
        if status != 200:
            raise ValueError(f"the critic's server at {self.url} refused: {said.get('error', status)}")
        return said


@dataclass(eq=False)
class SubBatch:
    """A part of a batch: what one request asks, under one id however often it is sent."""

    critic: str
    rows: slice
    videos: Video
    prompts: list[str]
    frames: list[int]
    fps: float
    """Of the chosen frames."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tries: int = 0
    values: np.ndarray | None = None
    _body: list[Any] | None = None

    def body(self) -> list[Any]:
        """
        Raises:
            ValueError: a pixel is not a number.
        """
        if self._body is None:
            for video, prompt in zip(self.videos, self.prompts, strict=True):
                if not all(video[i].sum(dtype=torch.float32).isfinite() for i in self.frames):
                    raise ValueError(f"critic {self.critic}: the video of {prompt!r} holds numbers that are not finite")
            self._body = pack(self.id, [as_uint8(video, self.frames) for video in self.videos], self.prompts, self.fps)
        return self._body


def as_uint8(video: Float[Tensor, "f 3 h w"], frames: Sequence[int]) -> np.ndarray:
    """Some frames of a video in [-1, 1] as files hold them: uint8 (n, h, w, 3)."""
    looks = [  # one by one: in the cache of a CPU that is seven times faster than all at once
        video[i].float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(1, 2, 0) for i in frames
    ]
    return torch.stack(looks).contiguous().cpu().numpy()


class Batch:
    """What of a batch is still to be answered, and who is there to ask; shared by the servers' threads."""

    def __init__(self, shares: list[SubBatch], servers: int, tries: int):
        self.error: Exception | None = None
        self._waiting, self._unanswered = deque(shares), len(shares)
        self._servers, self._most_tries = servers, servers * tries
        self._fault: Exception | None = None
        self._changed = threading.Condition()

    def take(self) -> SubBatch | None:
        """The next share, waited for if another server may give its own back; None when there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over())
            return None if self._over() else self._waiting.popleft()

    def answered(self) -> None:
        with self._changed:
            self._unanswered -= 1
            self._changed.notify_all()

    def put_back(self, share: SubBatch, fault: Exception | None = None) -> None:
        """The share is to be taken again, unless it has been tried too often."""
        with self._changed:
            self._waiting.appendleft(share)
            self._fault = fault
            if share.tries >= self._most_tries:
                self.error = self.error or fault
            self._changed.notify_all()

    def leave(self) -> None:
        """A server is given up; if it was the last, so is the batch."""
        with self._changed:
            self._servers -= 1
            if not self._servers:
                self.error = self.error or self._fault
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, unless all is over before."""
        with self._changed:
            self._changed.wait_for(self._over, seconds)

    def _over(self) -> bool:
        return self.error is not None or not self._unanswered


def _agreed(servers: list[Server]) -> dict[str, Any]:
    """What the servers say of their critic: the same, or it is an error."""
    with ThreadPoolExecutor(len(servers)) as pool:
        asked = [(server, pool.submit(server.patiently, server.health)) for server in servers]
    said: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for server, health in asked:
        try:
            said[server.url] = health.result()
        except NoAnswerError as error:
            faults.append(f"{server.url}: {error}")
    if not said:
        raise ConnectionError(f"no critic's server answers: {'; '.join(faults)}; is `besttake serve` running there?")
    for fault in faults:
        log.warning("going on without the critic's server at %s", fault)
    first, *others = said
    same = ("critic", "revision", "dimensions", "frames", "frame_rate")
    for url in others:
        if any(said[url][key] != said[first][key] for key in same):
            one, other = ({key: said[place][key] for key in same} for place in (first, url))
            raise ValueError(f"the servers are not of one critic: {first} is {one}, {url} is {other}")
    return {**said[first], **{key: min(health[key] for health in said.values()) for key in ("clips", "largest")}}


def _checked_health(said: dict[str, Any]) -> dict[str, Any]:
    """What a server says of itself, if it says all of it; Unanswered otherwise: something else listens there."""
    texts = isinstance(said.get("critic"), str) and isinstance(said.get("revision"), str)
    names, sizes = said.get("dimensions"), (said.get("clips"), said.get("largest"))
    named = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    if not (texts and named and all(type(size) is int and size > 0 for size in sizes)):
        raise NoAnswerError(f"it does not answer as a critic's server does: {str(said)[:120]}")
    return {"frames": None, "frame_rate": None, "card": {}, **said}


def _card(said: dict[str, Any]) -> CriticCard:
    card = said["card"]
    return CriticCard(
        source=card.get("source", "not told by its server"),
        licence=card.get("licence", "not told by its server"),
        ranges={name: (low, high) for name, (low, high) in card.get("ranges", {}).items()},
        frames=said["frames"],
        frame_rate=said["frame_rate"],
        resolution=card.get("resolution", "as it is"),
        memory=card.get("memory", 0.0),
    )


def _seconds(text: str | None) -> float:
    try:
        return min(LONGEST_WAIT, max(0.05, float(text or 1)))
    except ValueError:
        return 1.0
