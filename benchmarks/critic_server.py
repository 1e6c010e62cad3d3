"""Critic server: overhead compared with a bare transfer, and a load test in which a server is killed.

    python benchmarks/critic_server.py overhead      # of a clip of 81 x 480 x 832; half a minute
    python benchmarks/critic_server.py load          # 32 clients, 10,000 requests, a server killed; some minutes

The overhead is the time from sending a critic's frames to its answer, minus that of sending as many bytes through a
bare socket, for a critic that takes no time. The load test fails if a request was lost or answered wrongly, or if
memory or the number of descriptors grew.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import tyro

from besttake.rewards.remote import server
from besttake.rewards.remote.batches import as_uint8
from besttake.rewards.remote.client import Remote, Server
from besttake.rewards.remote.http import RetryPolicy
from besttake.rewards.remote.server import pack, select_frames

SINK = """
import socket
import numpy as np
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    line, _ = listener.accept()
    size = int.from_bytes(line.recv(8), "little")
    body, got = memoryview(np.empty(size, np.uint8)), 0
    while got < size:
        got += line.recv_into(body[got : got + (1 << 20)])
    line.sendall(b".")
    line.close()
"""

CRITIC = """
import os
import numpy as np

def load(path, device):
    return Critic(path)

class Critic:
    name, dimensions, revision, frames = "benchmark", ("light", "number"), "1", {frames}

    def __init__(self, path):
        self.seen = open(path, "a", buffering=1)

    def __call__(self, videos, prompts, fps):
        self.seen.write("".join(prompt + "\\n" for prompt in prompts))
        return np.array([[video[0, 0, 0, 0], float(prompt)] for video, prompt in zip(videos, prompts)])
"""


@dataclass(frozen=True)
class Overhead:
    """What one clip costs beside the transfer of its frames."""

    frames: int = 81
    height: int = 480
    width: int = 832
    repeats: int = 31


@dataclass(frozen=True)
class Load:
    """Many clients, two servers, one of which is killed when 40 % is done, and comes back after a second."""

    clients: int = 32
    requests: int = 10_000


def overhead(config: Overhead) -> None:
    """Print milliseconds, medians over the repeats, for critics that use 16 frames and all frames."""
    torch.manual_seed(0)
    video = torch.rand(1, config.frames, 3, config.height, config.width) * 2 - 1
    print(f"| a clip of {config.frames} x {config.height} x {config.width}, frames used | MB | to uint8 | bare "
          "transfer | request | overhead |\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for most in (16, None):
        frames, fps = select_frames(SimpleNamespace(frames=most), config.frames, 16.0)
        array = as_uint8(video[0], frames)
        with tempfile.TemporaryDirectory() as folder, served(Path(folder), frames=most) as url, sink() as port:
            to, whole, bare = Server(url, None, RetryPolicy()), [], []
            for number in range(config.repeats + 2):
                body = pack(str(number), [array], ["1"], fps)
                bare.append(timed(transfer, port, body))
                whole.append(timed(request, to, body))
        convert = median(timed(as_uint8, video[0], frames) for _ in range(5))
        beyond = [whole[i] - bare[i] for i in range(2, len(whole))]
        times = " | ".join(f"{time:.1f} ms" for time in (convert, median(bare[2:]), median(whole[2:]), median(beyond)))
        print(f"| {len(frames)} frames | {array.nbytes / 1e6:.1f} | {times} |")


def load(config: Load) -> None:
    """Print what became of the requests, the rate, and what memory and descriptors did."""
    logging.getLogger("besttake").setLevel(logging.ERROR)  # 32 clients tell of the server that was killed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [start(folder, f"{i}", free_port()) for i in range(2)]
        try:
            urls = [url for _, url, _ in processes]
            retry = RetryPolicy(answer=60.0, tries=10, pause=0.05)
            clients = [Remote(urls, retry=retry) for _ in range(config.clients)]
            answers: dict[int, list[float]] = {}
            usage: list[tuple[str, int, dict[str, tuple[float, int]]]] = []
            lock, killed = threading.Lock(), threading.Event()

            def work(client: Remote, numbers: range) -> None:
                for number in numbers:
                    level = number % 256
                    video = torch.full((1, 2, 3, 16, 16), level / 127.5 - 1)
                    row = client(video, [str(number)]).values[0].tolist()
                    with lock:
                        assert number not in answers, f"{number} was answered twice"
                        answers[number] = row

            def record_usage(when: str) -> None:
                pids = {"clients": os.getpid(), "the server that lived": processes[1][0].pid}
                usage.append((when, len(answers), {who: (memory(pid), descriptors(pid)) for who, pid in pids.items()}))

            began = time.perf_counter()
            with ThreadPoolExecutor(config.clients) as pool:
                jobs = [
                    pool.submit(work, client, range(i, config.requests, config.clients))
                    for i, client in enumerate(clients)
                ]
                while not all(job.done() for job in jobs):
                    time.sleep(0.05)
                    share = len(answers) / config.requests
                    if share >= 0.2 and not usage:
                        record_usage("at a fifth")
                    if share >= 0.4 and not killed.is_set():
                        killed.set()
                        processes[0][0].kill()
                        processes[0][0].wait()
                        time.sleep(1.0)
                        processes[0] = start(folder, "0", int(urls[0].rpartition(":")[2]))
                for job in jobs:
                    job.result()
            seconds = time.perf_counter() - began
            time.sleep(0.5)
            record_usage("at the end")
            report(config, answers, scored_requests(folder), seconds, usage)
        finally:
            for process, _, _ in processes:
                process.kill()
                process.wait()


def report(config: Load, answers: dict[int, list[float]], scored: list[int], seconds: float, usage: list) -> None:
    wrong = [number for number, row in answers.items() if row != [number % 256, number]]
    lost = config.requests - len(answers)
    again = len(scored) - len(set(scored))
    print(f"{config.requests} requests of {config.clients} clients in {seconds:.0f} s, {config.requests / seconds:.0f} "
          f"a second: {lost} lost, {len(wrong)} answered wrongly, 0 answered twice; {again} were scored twice, "
          "their first answer having died with its server")  # fmt: skip
    print("| | requests answered | " + " | ".join(f"{who}: MB, descriptors" for who in usage[0][2]) + " |")
    print("| --- " * (2 + len(usage[0][2])) + "|")
    for when, done, use in usage:
        print(f"| {when} | {done} | " + " | ".join(f"{mb:.0f}, {count}" for mb, count in use.values()) + " |")
    for who, (mb, count) in usage[-1][2].items():
        mb_before, count_before = usage[0][2][who]
        if mb > 1.1 * mb_before + 20 or count > count_before:
            raise SystemExit(f"{who} grew from {mb_before:.0f} MB, {count_before} descriptors to {mb:.0f} MB, {count}")
    if lost or wrong or set(scored) != set(range(config.requests)):
        raise SystemExit(f"lost {lost}, wrong {wrong[:10]}, not scored {config.requests - len(set(scored))}")


def start(folder: Path, name: str, port: int, frames: int | None = None) -> tuple[subprocess.Popen, str, Path]:
    """A server as a plain file in a process of its own, ready."""
    critic, announced = folder / "critic.py", folder / f"{name}-{time.monotonic_ns()}"
    critic.write_text(CRITIC.format(frames=frames))
    flags = ["--port", port, "--announce", announced, "--path", folder / f"{name}.seen", "--queue", 16]
    process = subprocess.Popen(
        [str(part) for part in (sys.executable, "-I", server.__file__, critic, *flags)], stdout=subprocess.DEVNULL
    )
    while not announced.exists():
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.02)
    url = json.loads(announced.read_text())["url"]
    Remote(url)
    return process, url, announced


@contextmanager
def served(folder: Path, frames: int | None) -> Iterator[str]:
    process, url, _ = start(folder, "one", 0, frames)
    yield url
    process.kill()
    process.wait()


@contextmanager
def sink() -> Iterator[int]:
    """The port of a process that takes bytes and does nothing with them."""
    process = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()


def transfer(port: int, body: list) -> None:
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(sum(len(part) for part in body).to_bytes(8, "little"))
        for part in body:
            line.sendall(part)
        line.recv(1)


def request(to: Server, body: list) -> None:
    response = to.http.request("POST", "/score", body, "application/octet-stream")
    assert response.status == 200, response.text


def timed(do: Callable, *arguments: Any) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    do(*arguments)
    return 1000 * (time.perf_counter() - began)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def scored_requests(folder: Path) -> list[int]:
    """The numbers of all requests that a critic has scored, on whichever server."""
    return [int(line) for file in folder.glob("*.seen") for line in file.read_text().split()]


def memory(pid: int) -> float:
    """MB in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main(arguments: list[str]) -> None:
    parts: dict[str, tuple] = {"overhead": (Overhead, overhead), "load": (Load, load)}
    if not arguments or arguments[0] not in parts:
        raise SystemExit("usage: python benchmarks/critic_server.py overhead|load [flags]")
    config, measure = parts[arguments[0]]
    measure(tyro.cli(config, args=arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
