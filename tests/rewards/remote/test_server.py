import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from besttake.rewards.remote import server
from besttake.rewards.remote.server import CriticServer, Limits, find_factory, pack, select_frames, unpack
from tests.rewards.plain_critics import Brightness

FILE = Path(server.__file__)
CRITICS = Path(__file__).parents[1] / "plain_critics.py"


def clips(*levels):
    return [np.full((2, 4, 6, 3), level, np.uint8) for level in levels]


def body_of(id="one", levels=(10, 20), prompts=("a", "bc"), fps=8.0):
    return b"".join(bytes(part) for part in pack(id, clips(*levels), prompts, fps))


def send(url, method="GET", path="/health", body=None, headers=None):
    """Status, JSON and headers of one answer."""
    line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        with suppress(BrokenPipeError):  # an answer may come before all is said
            line.request(method, path, body, headers or {})
        answer = line.getresponse()
        return answer.status, json.loads(answer.read() or "{}"), answer.headers
    finally:
        line.close()


def score(url, body, headers=None):
    return send(url, "POST", "/score", body, headers)


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def serve():
    """A function that serves a critic in this process and waits until it is ready."""
    servers = []

    def start(critic, token=None, **limits):
        servers.append(CriticServer(lambda: critic, token=token, limits=Limits(wait=0.05, grace=2.0, **limits)).start())
        until(lambda: servers[-1].scoring_queue.critic)
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def test_health_says_what_is_served(serve):
    status, said, _ = send(serve(Brightness(frames=4, frame_rate=2.0)).url)
    assert status == 200
    assert said["critic"] == "brightness"
    assert said["dimensions"] == ["light", "words"]
    assert (said["revision"], said["frames"], said["frame_rate"], said["ready"]) == ("1", 4, 2.0, True)


def test_scores_are_those_of_the_critic(serve):
    critic = Brightness()
    status, said, _ = score(serve(critic).url, body_of())
    assert status == 200
    assert said["request"] == "one"
    assert said["items"] == [{"scores": [10.0, 1.0]}, {"scores": [20.0, 2.0]}]
    assert critic.calls == [((2, 4, 6, 3), "a", 8.0), ((2, 4, 6, 3), "bc", 8.0)]


def test_what_safetensors_writes_is_read_in_both_forms():
    about = {"request": "x", "prompts": json.dumps(["a", "b"]), "fps": "12.5"}
    some = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7, 3), np.uint8)
    for tensors in ({"videos": some}, {"0": some[0], "1": some[1]}):
        request = unpack(memoryview(save(tensors, about)))
        assert (request.id, request.prompts, request.fps) == ("x", ["a", "b"], 12.5)
        assert np.array_equal(request.videos, some)


def test_safetensors_reads_what_is_packed():
    some = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((3, 5, 7, 3), (1, 2, 2, 3))]
    read = load(b"".join(bytes(part) for part in pack("x", some, ["a", "ü"], 8.0)))
    assert all(np.array_equal(read[str(i)], video) for i, video in enumerate(some))


def test_frames_are_chosen_by_number_by_rate_or_by_the_critic_itself():
    assert select_frames(Brightness(frames=5), 81, 16.0) == ([0, 20, 40, 60, 80], 16.0 * 5 / 81)
    assert select_frames(Brightness(frame_rate=1.0), 81, 16.0) == ([0, 16, 32, 48, 64], 1.0)
    assert select_frames(Brightness(frames=2, frame_rate=1.0), 81, 16.0)[0] == [0, 16, 32, 48, 64]
    assert select_frames(Brightness(frames=1), 3, 8.0)[0] == [0]
    assert select_frames(Brightness(chosen=lambda frames, fps: [frames - 1]), 4, 8.0) == ([3], 2.0)
    for most, rate in ((None, None), (9, None), (3, None), (None, 8.0), (None, 24.0)):
        assert select_frames(Brightness(most, rate), 3, 8.0) == ([0, 1, 2], 8.0)


def test_the_server_says_which_frames_to_send(serve):
    url = serve(Brightness(frames=2)).url
    assert send(url, path="/frames?count=8&fps=16")[1] == {"frames": [0, 7], "fps": 4.0}
    for wrong in ("", "?count=8", "?count=0&fps=8", "?count=8&fps=nan", "?count=x&fps=8"):
        assert send(url, path="/frames" + wrong)[0] == 400


def test_a_request_sent_again_is_not_scored_again(serve):
    one = serve(Brightness())
    first, second = score(one.url, body_of())[1], score(one.url, body_of())[1]
    assert first == second
    assert send(one.url)[1]["scored"] == 2


def test_a_request_sent_again_while_it_is_scored_waits_for_the_same_answer(serve):
    critic = Brightness()
    critic.gate.clear()
    one = serve(critic)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(score(one.url, body_of())[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    critic.entered.acquire()
    until(lambda: one.scoring_queue.free == one.limits.queue - 1)  # the two others have given their places back
    critic.gate.set()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 3
    assert answers[0] == answers[1] == answers[2]
    assert len(critic.calls) == 2


def test_an_id_used_for_other_clips_is_refused(serve):
    one = serve(Brightness())
    score(one.url, body_of())
    status, said, _ = score(one.url, body_of(prompts=("a", "another")))
    assert status == 409
    assert "one" in said["error"]
    assert one.scoring_queue.free == one.limits.queue


def test_only_the_last_answers_are_remembered(serve):
    one = serve(Brightness(), remembered=2)
    for id in ("a", "b", "c", "a"):
        assert score(one.url, body_of(id))[0] == 200
    assert one.scoring_queue.scored == 8
    assert len(one.scoring_queue._jobs) == 2


def test_a_full_queue_sends_clients_away_for_a_while(serve):
    critic = Brightness()
    critic.gate.clear()
    one = serve(critic, queue=2)
    threads = [threading.Thread(target=score, args=(one.url, body_of(str(i)))) for i in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: one.scoring_queue.free == 0)
    status, said, headers = score(one.url, body_of("third"))
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "full" in said["error"]
    critic.gate.set()
    for thread in threads:
        thread.join(10)
    assert score(one.url, body_of("third"))[0] == 200
    assert one.scoring_queue.free == 2


def test_a_clip_that_cannot_be_scored_does_not_spoil_the_others(serve):
    levels, prompts = (1, 2, 3), ("a", "bad", "nan")
    _, said, _ = score(serve(Brightness()).url, body_of(levels=levels, prompts=prompts))
    assert said["items"][0] == {"scores": [1.0, 1.0]}
    assert "cannot read it" in said["items"][1]["error"]
    assert "nan for 'words'" in said["items"][2]["error"]


def test_scores_of_a_wrong_shape_are_an_error(serve):
    critic = Brightness(dimensions=("light", "words", "more"))
    _, said, _ = score(serve(critic).url, body_of())
    assert all("shape (1, 2), expected (1, 3)" in item["error"] for item in said["items"])


def rewritten(change):
    body = body_of()
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + size :]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04pickle?",
        body_of()[:30],
        body_of()[:-1],
        rewritten(lambda header: header["0"].update(dtype="F32")),
        rewritten(lambda header: header["0"].update(shape=[2, 4, 18])),
        rewritten(lambda header: header["0"].update(shape=[2, 4, 6, 4])),
        rewritten(lambda header: header["0"].update(shape=[-2, -4, 6, 3])),
        rewritten(lambda header: header["1"].update(data_offsets=[144, 2**60])),
        rewritten(lambda header: header["1"].update(data_offsets=["0", "1"])),
        rewritten(lambda header: header.update({"2": header.pop("1")})),
        rewritten(lambda header: header.pop("__metadata__")),
        rewritten(lambda header: header["__metadata__"].update(prompts='["one"]')),
        rewritten(lambda header: header["__metadata__"].update(prompts="[1, 2]")),
        rewritten(lambda header: header["__metadata__"].update(fps="0")),
        rewritten(lambda header: header["__metadata__"].update(fps="nan")),
        rewritten(lambda header: header["__metadata__"].update(request="")),
    ],
)
def test_what_is_no_request_is_refused_and_holds_no_place(serve, body):
    one = serve(Brightness())
    status, said, _ = score(one.url, body)
    assert status == 400
    assert said["error"]
    assert one.scoring_queue.free == one.limits.queue
    assert score(one.url, body_of())[0] == 200


def test_too_large_requests_are_refused(serve):
    one = serve(Brightness(), largest=1000, clips=2)
    status, said, _ = score(one.url, None, {"Content-Length": "1001"})
    assert status == 413
    assert "1001 bytes" in said["error"]
    small = [np.zeros((1, 2, 2, 3), np.uint8)] * 3
    status, said, _ = score(one.url, b"".join(bytes(part) for part in pack("x", small, ["a"] * 3, 8.0)))
    assert status == 413
    assert "3 clips" in said["error"]


def test_a_request_must_tell_its_length(serve):
    assert score(serve(Brightness()).url, iter([b"x"]))[0] == 411


def test_other_pages_are_not_there(serve):
    url = serve(Brightness()).url
    assert send(url, path="/")[0] == 404
    assert send(url, "POST", "/health", b"")[0] == 404


@pytest.mark.parametrize("given", [None, "Bearer wrong", "secret", "Bearer sécret"])
def test_without_the_token_nothing_is_revealed(serve, given):
    url = serve(Brightness(), token="secret").url
    headers = {"Authorization": given.encode()} if given else {}
    for answer in (send(url, headers=headers), score(url, body_of(), headers)):
        assert answer[0] == 401
        assert "brightness" not in json.dumps(answer[1])


def test_with_the_token_it_is(serve):
    url = serve(Brightness(), token="secret").url
    assert score(url, body_of(), {"Authorization": "Bearer secret"})[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_another_address_needs_a_token(host):
    with pytest.raises(ValueError, match="BESTTAKE_TOKEN"):
        CriticServer(Brightness, host)


def test_loopback_is_the_default(serve):
    assert serve(Brightness()).url.startswith("http://127.0.0.1:")


def test_a_client_that_stops_sending_loses_its_place(serve):
    one = serve(Brightness(), arrival=0.2)
    line = socket.create_connection(one.server_address[:2])
    line.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
    until(lambda: one.scoring_queue.free == one.limits.queue - 1)
    until(lambda: one.scoring_queue.free == one.limits.queue)
    assert line.recv(100) == b""
    line.close()


def test_too_many_connections_are_sent_away(serve):
    one = serve(Brightness(), connections=1)
    line = socket.create_connection(one.server_address[:2])
    until(lambda: one._connections._value == 0)
    assert send(one.url)[0] == 503
    line.close()
    until(lambda: one._connections._value == 1)
    assert send(one.url)[0] == 200


def test_an_answer_that_takes_too_long_can_be_had_later(serve):
    critic = Brightness()
    critic.gate.clear()
    one = serve(critic, answer=0.1)
    assert score(one.url, body_of())[0] == 504
    critic.gate.set()
    assert score(one.url, body_of())[1]["items"][0] == {"scores": [10.0, 1.0]}
    assert len(critic.calls) == 2


def test_open_requests_are_answered_before_it_stops(serve):
    critic = Brightness()
    critic.gate.clear()
    one = serve(critic)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(score(one.url, body_of())))
    thread.start()
    critic.entered.acquire()
    stopping = threading.Thread(target=one.stop)
    stopping.start()
    until(one.scoring_queue.stopping.is_set)
    critic.gate.set()
    thread.join(10)
    stopping.join(10)
    assert answers[0][0] == 200
    with pytest.raises(ConnectionRefusedError):
        send(one.url)


@pytest.mark.parametrize("name", ["nothing", "no.such:load", "json:nothing", "nowhere.py", f"{CRITICS}:nothing"])
def test_a_factory_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=r"there is no critic .*module:function"):
        find_factory(name)


def start_file(tmp_path, critic, *flags):
    """`server.py` as a plain file, in a Python that knows nothing of this checkout; and its URL when it is there."""
    command = [sys.executable, "-I", FILE, critic, "--port", "0", "--announce", tmp_path / "address", *flags]
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "address").exists() or process.poll() is not None)
    return process, json.loads((tmp_path / "address").read_text())["url"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "the parent's end"])
def test_it_runs_as_a_plain_file_and_stops_when_it_should(tmp_path, how):
    process, url = start_file(tmp_path, f"{CRITICS}:without_besttake", "--with-parent")
    until(lambda: send(url)[1]["ready"])
    assert score(url, body_of())[0] == 200
    if how == "the parent's end":
        process.stdin.close()
    else:
        os.kill(process.pid, getattr(signal, how))
    assert process.wait(10) == 0
    process.stderr.close()
    process.stdin.close()


def test_a_critic_that_cannot_be_loaded_ends_the_server(tmp_path):
    process, _ = start_file(tmp_path, f"{CRITICS}:broken")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "RuntimeError: the weights are not there" in errors
    assert "Traceback" in errors


def test_a_users_mistake_is_reported_without_a_traceback(tmp_path):
    process, _ = start_file(tmp_path, f"{CRITICS}:mistaken")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "ValueError: there is no folder" in errors
    assert "Traceback" not in errors
