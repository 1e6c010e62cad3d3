"""Client of a critic on one or several HTTP servers (see `server.py`), with the interface of any critic.

Only the frames that the critic uses are sent, as raw uint8. A batch is distributed over the servers: each receives the
next part when it has answered. If a server dies, hangs or returns invalid data, its part goes to another one under the
same request id, so that a server does not score it twice.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch

from besttake.rewards.remote.batches import Batch, SubBatch
from besttake.rewards.remote.http import Client, ConnectionLostError, NoAnswerError, RetryPolicy, ServerBusyError
from besttake.rewards.remote.server import HEADER_LIMIT, TOKEN
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_SCORE = float(np.finfo(np.float32).max)


class Remote:
    """A `Reward` on one or several servers of the same critic.

    Raises:
        ConnectionError: no server answers. If some do, the others are skipped with a warning.
        ValueError: a URL is invalid, the token is wrong, or the servers have different critics or revisions.
    """

    differentiable = False

    def __init__(self, urls: str | Sequence[str], token: str | None = None, retry: RetryPolicy | None = None):
        """
        Args:
            urls: "http://host:port", or several, in a list or separated by commas.
            token: the servers' token; by default the environment variable BESTTAKE_TOKEN.
        """
        urls = urls.split(",") if isinstance(urls, str) else urls
        self.retry, token = retry or RetryPolicy(), token or os.environ.get(TOKEN)
        self.servers = [Server(url.strip(), token, self.retry) for url in urls]
        if not self.servers:
            raise ValueError("a remote critic needs the URL of a server, such as http://127.0.0.1:8000")
        health = _common_health(self.servers)
        self.name, self.revision, self.dimensions = health["critic"], health["revision"], tuple(health["dimensions"])
        self._clips, self._largest = health["clips"], health["largest"]
        self.card = _card(health)
        self._turns = itertools.count()
        self._frames: dict[tuple[int, float], tuple[list[int], float]] = {}

    @property
    def identity(self) -> str:
        """Key of the scores, besides the name."""
        return self.revision

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are invalid, or the critic cannot score one of them; the message names critic, URL,
                prompt and dimensions.
            ConnectionError: no server has answered within the limits; the message names the same.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        parts = self._cut(videos.detach(), prompts, fps)
        batch = Batch(parts, len(self.servers), self.retry.tries)
        first = next(self._turns) % len(self.servers)  # so that small batches are distributed, too
        with ThreadPoolExecutor(len(self.servers)) as pool:
            order = self.servers[first:] + self.servers[:first]
            threads = [pool.submit(self._serve, server, batch) for server in order]
        for thread in threads:
            thread.result()
        if batch.error:
            raise batch.error
        values = np.empty((len(prompts), len(self.dimensions)), np.float32)
        for part in parts:
            assert part.values is not None
            values[part.rows] = part.values
        return Score(torch.from_numpy(values).to(videos.device), self.dimensions)

    def _cut(self, videos: Video, prompts: list[str], fps: float) -> list[SubBatch]:
        """Split the batch into one request per server, or more if they would be too large."""
        chosen, rate = self._select_frames(videos.shape[1], fps)
        clip = len(chosen) * math.prod(videos.shape[2:])
        room = self._largest - HEADER_LIMIT
        if clip > room:
            raise ValueError(
                f"critic {self.name}: {len(chosen)} frames of {tuple(videos.shape[-2:])} are {clip} bytes, but its "
                f"server accepts {self._largest}; start it with --largest {2 * clip // 2**20 + 2} (MiB)"
            )
        size = min(self._clips, room // clip, -(-len(prompts) // len(self.servers)))
        rows = [slice(start, start + size) for start in range(0, len(prompts), size)]
        return [
            SubBatch(self.name, row, videos[row], [str(prompt) for prompt in prompts[row]], chosen, rate)
            for row in rows
        ]

    def _select_frames(self, frames: int, fps: float) -> tuple[list[int], float]:
        """Indices of the frames that the critic uses, and their fps; requested once per clip length and rate."""
        faults = []
        for server in [] if (frames, fps) in self._frames else self.servers:
            try:
                self._frames[frames, fps] = server.retrying(partial(server.frames, frames, fps))
                break
            except NoAnswerError as error:
                faults.append(f"{server.url}: {error}")
        if (frames, fps) not in self._frames:
            raise ConnectionError(
                f"critic {self.name}: no server answers which frames it needs to score {', '.join(self.dimensions)}: "
                + "; ".join(faults)
            )
        return self._frames[frames, fps]

    def _serve(self, server: Server, batch: Batch) -> None:
        """Send parts of the batch to one server until none is left or it fails too often in a row."""
        failures, busy_since = 0, None
        while part := batch.next():
            fault: NoAnswerError
            try:
                part.values = self._scores(server, part)
            except ServerBusyError as busy:
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since < self.retry.answer:
                    batch.put_back(part)
                    batch.pause(self.retry.delay(busy, 0))
                    continue
                failures, fault = self.retry.tries, busy
            except NoAnswerError as error:
                failures, fault = failures + 1, error
            except Exception as error:  # any error: the other servers' threads must not wait for this one
                batch.fail(error)
                return
            else:
                failures, busy_since = 0, None
                batch.answered()
                continue
            part.tries += 1
            log.warning("critic %s at %s: %s", self.name, server.url, fault)
            reason = (
                f"critic {self.name} at {server.url} did not return {self._about(part)}: {fault} (try {part.tries})"
            )
            batch.put_back(part, ConnectionError(reason))
            if failures >= self.retry.tries:
                batch.leave()
                return
            batch.pause(self.retry.delay(fault, failures))

    def _scores(self, server: Server, part: SubBatch) -> np.ndarray:
        """Scores (rows, dimensions) of a part."""
        status, answer = server.score(part)
        if status != 200:
            raise ValueError(f"critic {self.name} at {server.url} refused the request: {answer.get('error', status)}")
        found = (answer.get("critic"), answer.get("revision"), answer.get("dimensions"))
        if found != (self.name, self.revision, list(self.dimensions)):
            raise ValueError(
                f"{server.url} now serves critic {found[0]!r}, revision {found[1]!r}, dimensions {found[2]}; it served "
                f"{self.name!r}, revision {self.revision!r}, dimensions {self.dimensions}: start that one again"
            )
        items = answer.get("items")
        if answer.get("request") != part.id or not isinstance(items, list) or len(items) != len(part.prompts):
            raise NoAnswerError("its answer belongs to another request, or is incomplete")
        return np.array([self._row(server, item, part, i) for i, item in enumerate(items)], np.float32)

    def _row(self, server: Server, item: Any, part: SubBatch, i: int) -> list[float]:
        """The scores of one clip, all finite."""
        where = f"critic {self.name} at {server.url}, the video of {part.prompts[i]!r}"
        if not isinstance(item, dict) or not ("scores" in item or "error" in item):
            raise NoAnswerError(f"its answer for {part.prompts[i]!r} has neither scores nor an error: {str(item)[:80]}")
        if "error" in item:
            raise ValueError(f"{where}: no {', '.join(self.dimensions)}: {item['error']}")
        scores = item["scores"]
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or len(scores) != len(self.dimensions):
            raise NoAnswerError(
                f"its scores for {part.prompts[i]!r} are {str(scores)[:80]}, expected {len(self.dimensions)} numbers"
            )
        for dimension, score in zip(self.dimensions, scores, strict=True):
            if not abs(score) <= LARGEST_SCORE:
                raise ValueError(f"{where}: it returned {score} for {dimension!r}; a score must be finite")
        return scores

    def _about(self, part: SubBatch) -> str:
        more = f" (and {len(part.prompts) - 1} more)" if len(part.prompts) > 1 else ""
        return f"{', '.join(self.dimensions)} of the video of {part.prompts[0]!r}{more}"


class Server:
    """One server of a critic.

    Raises:
        ValueError: the URL is not http:// or https:// with a host.
    """

    def __init__(self, url: str, token: str | None, retry: RetryPolicy):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{url!r} is not the URL of a critic's server; expected a URL such as http://127.0.0.1:8000"
            )
        self.url, self.retry = url.rstrip("/"), retry
        self.http = Client(self.url, token, retry, busy=(503,))

    def retrying(self, request: Callable[[], T]) -> T:
        """The result of a request to this server, with retries; `NoAnswerError` if all fail."""

        def waiting(fault: NoAnswerError) -> None:
            log.info("waiting for the critic's server at %s: %s", self.url, fault)

        return self.retry.call(request, waiting)

    def score(self, part: SubBatch) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer; a lost one is requested once more, since the server remembers it."""
        post = partial(self.http.request, "POST", "/score", part.body(), "application/octet-stream")
        try:
            response = post()
        except ConnectionLostError:
            response = post()
        return response.status, response.json()

    def health(self) -> dict[str, Any]:
        """The server's critic and limits; `NoAnswerError` if it is not ready, ValueError if it refuses the token."""
        answer = self._get("/health")
        if answer.get("ready") is False:
            raise ServerBusyError("it is still loading its critic", 1.0)
        return _checked_health(answer)

    def frames(self, count: int, fps: float) -> tuple[list[int], float]:
        """Indices and fps of the frames that the critic uses of a clip; `NoAnswerError` for an invalid answer."""
        answer = self._get(f"/frames?count={count}&fps={fps}")
        places: Any = answer.get("frames")
        rate: Any = answer.get("fps")
        listed = isinstance(places, list) and bool(places) and all(type(i) is int and 0 <= i < count for i in places)
        if not listed or type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise NoAnswerError(f"it requests frames {str(places)[:80]} at {rate} fps, of a clip of {count} frames")
        return places, float(rate)

    def _get(self, path: str) -> dict[str, Any]:
        response = self.http.request("GET", path)
        answer = response.json()
        if response.status != 200:
            raise ValueError(f"the critic's server at {self.url} refused: {answer.get('error', response.status)}")
        return answer


def _common_health(servers: list[Server]) -> dict[str, Any]:
    """The health of all servers that answer; an error unless they serve the same critic."""
    with ThreadPoolExecutor(len(servers)) as pool:
        requests = [(server, pool.submit(server.retrying, server.health)) for server in servers]
    found: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for server, request in requests:
        try:
            found[server.url] = request.result()
        except NoAnswerError as error:
            faults.append(f"{server.url}: {error}")
    if not found:
        raise ConnectionError(f"no critic's server answers: {'; '.join(faults)}; is `besttake serve` running there?")
    for fault in faults:
        log.warning("continuing without the critic's server at %s", fault)
    first, *others = found
    same = ("critic", "revision", "dimensions", "frames", "frame_rate")
    for url in others:
        if any(found[url][key] != found[first][key] for key in same):
            one, other = ({key: found[place][key] for key in same} for place in (first, url))
            raise ValueError(f"the servers have different critics: {first} has {one}, {url} has {other}")
    return {**found[first], **{key: min(health[key] for health in found.values()) for key in ("clips", "largest")}}


def _checked_health(health: dict[str, Any]) -> dict[str, Any]:
    """The health of a critic's server; NoAnswerError if it is incomplete, as of some other server."""
    texts = isinstance(health.get("critic"), str) and isinstance(health.get("revision"), str)
    names, sizes = health.get("dimensions"), (health.get("clips"), health.get("largest"))
    named = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    if not (texts and named and all(type(size) is int and size > 0 for size in sizes)):
        raise NoAnswerError(f"it is not a critic's server: {str(health)[:120]}")
    return {"frames": None, "frame_rate": None, "card": {}, **health}


def _card(health: dict[str, Any]) -> CriticCard:
    card = health["card"]
    return CriticCard(
        source=card.get("source", "unknown: its server does not say"),
        licence=card.get("licence", "unknown: its server does not say"),
        ranges={name: (low, high) for name, (low, high) in card.get("ranges", {}).items()},
        frames=health["frames"],
        frame_rate=health["frame_rate"],
        resolution=card.get("resolution", "as it is"),
        memory=card.get("memory", 0.0),
    )
