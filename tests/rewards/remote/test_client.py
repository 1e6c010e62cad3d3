import http.server
import json
import threading
import time

import pytest
import torch

from besttake import __version__
from besttake.rewards import load_reward
from besttake.rewards.cache import CachedReward
from besttake.rewards.checks import score_checked
from besttake.rewards.remote.client import Remote
from besttake.rewards.remote.http import RetryPolicy
from besttake.rewards.remote.server import HEADER_LIMIT, CriticServer, Handler, Limits, unpack
from besttake.rewards.remote.serving import ServeConfig, Served, serve_critic
from besttake.types import CriticCard, Score
from tests.rewards.plain_critics import Brightness

QUICK = RetryPolicy(answer=5.0, connect=5.0, tries=3, pause=0.01)


def films(*levels, frames=2, side=8):
    """One grey video for each brightness in 0..255."""
    shape = (len(levels), frames, 3, side, side)
    return (torch.tensor(levels).float() / 127.5 - 1).view(-1, 1, 1, 1, 1).expand(shape)


@pytest.fixture
def serve():
    """A function that serves a critic in this process; it may be given another kind of server."""
    servers = []

    def start(critic=None, token=None, kind=CriticServer, port=0, **limits):
        made = critic or Brightness()
        servers.append(kind(lambda: made, port=port, token=token, limits=Limits(wait=0.02, grace=2.0, **limits)))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def impostor():
    """A function that starts a server which is healthy, and answers requests for scores as a function of them does."""
    servers = []

    def start(answer):
        class Impostor(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path.startswith("/frames"):
                    self.say(b'{"frames": [0, 1], "fps": 8.0}')
                    return
                said = {"critic": "brightness", "revision": "1", "dimensions": ["light", "words"]}
                self.say(json.dumps({**said, "ready": True, "clips": 16, "largest": 2**30}).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.server.requests.append(unpack(memoryview(body)))
                answer(self, self.server.requests[-1])

            def say(self, content, status=200, length=None):
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(content)))
                self.end_headers()
                self.wfile.write(content)

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Impostor))
        servers[-1].requests, servers[-1].daemon_threads = [], True
        servers[-1].url = f"http://127.0.0.1:{servers[-1].server_port}"
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def dies(handler, _):
    handler.close_connection = True


def hangs(handler, _):
    time.sleep(1.0)
    handler.close_connection = True


def garbage(handler, _):
    handler.say(b"<html>proxy error</html>")


def trouble(handler, _):
    handler.say(b'{"error": "out of memory"}', 500)


def half_an_answer(handler, _):
    handler.say(b'{"request": ', length=500)
    handler.close_connection = True


def says(items=({"scores": [1.0, 2.0]},), **other):
    def answer(handler, request):
        whole = {"request": request.id, "critic": "brightness", "revision": "1", "dimensions": ["light", "words"]}
        handler.say(json.dumps({**whole, "items": list(items), **other}).encode())

    answer.__name__ = f"says {items} {other or ''}"
    return answer


def test_it_is_a_reward_like_any_other(serve):
    critic = Remote(serve().url, retry=QUICK)
    score = score_checked(critic, films(10, 20, 30), ["a", "bc", "def"], 8.0)
    assert score.values.tolist() == [[10, 1], [20, 2], [30, 3]]
    assert (critic.name, critic.dimensions, critic.differentiable) == ("brightness", ("light", "words"), False)
    assert critic.card.ranges == {"light": (0, 255), "words": (0, 99)}


def test_a_critic_of_ours_says_the_same_through_a_server(serve):
    ours = load_reward("world")
    videos = torch.randint(0, 256, (3, 16, 3, 32, 32)) / 127.5 - 1
    prompts = ["a red ball rolls to the left"] * 3
    remote = Remote(serve(Served(ours)).url, retry=QUICK)
    assert remote.card == ours.card
    assert remote.revision.startswith(f"besttake {__version__}, ")
    torch.testing.assert_close(remote(videos, prompts).values, ours(videos, prompts).values, atol=1e-5, rtol=1e-5)


def test_a_critics_revision_is_that_of_its_weights_and_settings():
    same = [Served(load_reward("world")).revision for _ in range(2)]
    assert same[0] == same[1] != Served(load_reward("heldout")).revision
    changed = load_reward("world")
    with torch.no_grad():
        next(changed.network.parameters()).add_(1e-3)
    assert Served(changed).revision != same[0]


def test_servers_of_other_weights_are_distinguished_by_the_cache(serve, tmp_path):
    for revision, light in (("1", 7.0), ("2", 9.0)):
        remote = Remote(serve(Brightness(revision=revision)).url, retry=QUICK)
        cached = CachedReward(remote, tmp_path)
        assert cached(films(light), ["a"]).values[0, 0] == light
        assert (cached.hits, cached.misses) == (0, 1)


def test_only_the_frames_the_critic_looks_at_are_sent(serve):
    for critic, frames, fps in ((Brightness(frames=4), 4, 2.0), (Brightness(frame_rate=4.0), 8, 4.0)):
        Remote(serve(critic).url, retry=QUICK)(films(7, frames=32), ["a"], fps=16.0)
        assert critic.calls == [((frames, 8, 8, 3), "a", fps)]


@pytest.mark.parametrize("selection", [{"frames": [0, 9]}, {"frames": []}, {"frames": None}, {"fps": 0}, {"fps": "8"}])
def test_a_selection_of_frames_that_are_not_there_is_no_answer(impostor, selection, monkeypatch):
    server = impostor(says())
    remote = Remote(server.url, retry=QUICK)
    said = json.dumps({"frames": [0], "fps": 8.0, **selection}).encode()
    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", lambda handler: handler.say(said))
    with pytest.raises(ConnectionError, match="which frames it needs"):
        remote(films(1), ["a"])


class Three:
    """A critic of ours that looks at the first, the middle and the last frame, and says so."""

    name, dimensions, differentiable = "three", ("frames", "fps"), False
    card = CriticCard("tests", "none", {"frames": (0.0, 99.0), "fps": (0.0, 99.0)}, frames=3)

    def __call__(self, videos, prompts, fps=8.0):
        return Score(torch.tensor([[videos.shape[1], fps]] * len(videos)), self.dimensions)

    def chosen(self, frames, fps):
        return [0, frames // 2, frames - 1]


class Silent(Three):
    """The same, but it does not say so."""

    chosen = None


@pytest.mark.parametrize(("critic", "given"), [(Three, [3, 3.0]), (Silent, [9, 9.0])])
def test_a_critic_of_ours_gets_its_frames_alone_if_it_says_which(serve, critic, given):
    remote = Remote(serve(Served(critic())).url, retry=QUICK)
    assert remote(films(7, frames=9), ["a"], 9.0).values.tolist() == [given]


def test_a_batch_is_spread_over_the_servers_and_comes_back_in_order(serve):
    critics = [Brightness(), Brightness()]
    remote = Remote([serve(critic, clips=2).url for critic in critics], retry=QUICK)
    levels = list(range(20))
    assert remote(films(*levels), ["a"] * 20).values[:, 0].tolist() == levels
    assert sum(len(critic.calls) for critic in critics) == 20
    assert all(critic.calls for critic in critics)


@pytest.mark.parametrize(
    "answer",
    [
        dies,
        garbage,
        trouble,
        half_an_answer,
        says(items=()),
        says(items=[{"scores": [1.0]}]),
        says(items=[{"scores": [1.0, True]}]),
        says(items=[{"scores": [1.0, "2"]}]),
        says(items=[None]),
        says(request="another"),
    ],
    ids=lambda answer: answer.__name__,
)
def test_a_server_in_trouble_is_tried_within_limits_then_named(impostor, answer):
    server = impostor(answer)
    with pytest.raises(ConnectionError) as raised:
        Remote(server.url, retry=QUICK)(films(1), ["a cat"])
    for part in ("brightness", server.url, "'a cat'", "light", "words", "try 3"):
        assert part in str(raised.value)
    assert len({request.id for request in server.requests}) == 1
    assert 3 <= len(server.requests) <= 6  # a lost answer is requested twice in a try


def test_a_server_that_hangs_is_given_up(impostor):
    retry = RetryPolicy(answer=0.1, connect=5.0, tries=2, pause=0.01)
    with pytest.raises(ConnectionError, match="did not answer in time"):
        Remote(impostor(hangs).url, retry=retry)(films(1), ["a cat"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_a_score_that_is_no_number_is_never_passed_on(impostor, number):
    server = impostor(says(items=[{"scores": [number, 1.0]}]))
    with pytest.raises(ValueError, match=r"brightness at http.*'a cat'.*'light'.*finite"):
        Remote(server.url, retry=QUICK)(films(1), ["a cat"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(("prompt", "message"), [("a bad cat", "cannot read it"), ("nan", "nan for 'words'")])
def test_what_the_critic_cannot_score_is_an_error_with_its_name(serve, prompt, message):
    with pytest.raises(ValueError, match=rf"brightness at http.*{prompt}.*light, words.*{message}"):
        Remote(serve().url, retry=QUICK)(films(1, 2), ["a", prompt])


@pytest.mark.parametrize("answer", [dies, hangs, garbage, half_an_answer, trouble], ids=lambda answer: answer.__name__)
def test_the_others_answer_for_a_server_in_trouble(serve, impostor, answer):
    critic, ill = Brightness(), impostor(answer)
    retry = RetryPolicy(answer=0.5, connect=5.0, tries=2, pause=0.01)
    remote = Remote([ill.url, serve(critic, clips=2).url], retry=retry)
    assert remote(films(1, 2, 3, 4, 5), ["a"] * 5).values[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert sorted(prompt for _, prompt, _ in critic.calls) == ["a"] * 5
    assert ill.requests


class Forgetful(Handler):
    """Scores, and breaks the connection before the answer is sent: the first time of every request."""

    def _send(self, status, answer, after=None):
        seen = self.server.__dict__.setdefault("seen", set())
        if "request" in answer and answer["request"] not in seen:
            seen.add(answer["request"])
            raise ConnectionResetError
        super()._send(status, answer, after)


class ForgetfulServer(CriticServer):
    def finish_request(self, request, client_address):
        Forgetful(request, client_address, self)


def test_a_lost_answer_is_requested_again_and_the_clip_is_not_scored_twice(serve):
    critic = Brightness()
    server = serve(critic, kind=ForgetfulServer, clips=1)
    assert Remote(server.url, retry=QUICK)(films(1, 2, 3), ["a"] * 3).values[:, 0].tolist() == [1, 2, 3]
    assert len(critic.calls) == server.scoring_queue.scored == 3


def test_a_full_server_is_waited_for(serve):
    critic = Brightness()
    remote = Remote(serve(critic, queue=1, clips=1).url, retry=QUICK)
    answers = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: float(remote(films(i), ["a"]).values[0, 0])}))
        for i in range(6)
    ]
    critic.gate.clear()
    for thread in threads:
        thread.start()
    critic.entered.acquire()
    time.sleep(0.1)  # meanwhile the others are sent away
    critic.gate.set()
    for thread in threads:
        thread.join(10)
    assert answers == {i: i for i in range(6)}
    assert len(critic.calls) == 6


def test_a_server_started_again_is_used_again(serve):
    first = serve()
    remote = Remote(first.url, retry=RetryPolicy(answer=5.0, tries=8, pause=0.05))
    first.stop()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(remote(films(5), ["a"]).values.tolist()))
    thread.start()
    time.sleep(0.1)
    serve(port=first.server_port)
    thread.join(10)
    assert answers == [[[5, 1]]]


def test_a_server_that_now_serves_another_critic_is_refused(serve):
    first = serve()
    remote = Remote(first.url, retry=QUICK)
    first.stop()
    serve(Brightness(revision="2"), port=first.server_port)
    with pytest.raises(ValueError, match=r"now serves .*'2'.* it served .*'1'"):
        remote(films(5), ["a"])


def test_servers_of_different_critics_are_refused(serve):
    with pytest.raises(ValueError, match="have different critics"):
        Remote([serve().url, serve(Brightness(revision="2")).url], retry=QUICK)


def test_without_any_server_it_says_so():
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9: .*besttake serve"):
        Remote("http://127.0.0.1:9", retry=QUICK)


def test_it_goes_on_without_a_server_that_is_down(serve, caplog):
    remote = Remote(["http://127.0.0.1:9", serve().url], retry=QUICK)
    assert "continuing without" in caplog.text
    assert remote(films(3, 4), ["a", "b"]).values[:, 0].tolist() == [3, 4]


def test_a_server_that_is_no_critic_is_distinguished(impostor, monkeypatch):
    server = impostor(dies)
    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", lambda handler: handler.say(b'{"hello": "world"}'))
    with pytest.raises(ConnectionError, match="is not a critic's server"):
        Remote(server.url, retry=QUICK)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://there", "http://", ""])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected a URL such as http://127"):
        Remote(url, retry=QUICK)


def test_the_token_is_required_and_taken_from_the_environment(serve, monkeypatch):
    url = serve(token="secret").url
    with pytest.raises(ValueError, match="BESTTAKE_TOKEN"):
        Remote(url, retry=QUICK)
    assert Remote(url, token="secret", retry=QUICK).name == "brightness"
    monkeypatch.setenv("BESTTAKE_TOKEN", "secret")
    assert Remote(url, retry=QUICK).name == "brightness"


def test_videos_that_are_none_are_refused(serve):
    remote = Remote(serve().url, retry=QUICK)
    for videos, prompts in ((films(1)[0], ["a"]), (films(1).byte(), ["a"]), (films(1), ["a", "b"])):
        with pytest.raises(ValueError, match="critic brightness"):
            remote(videos, prompts)
    with pytest.raises(ValueError, match=r"'a cat' has pixels that are not finite"):
        remote(films(1) * float("nan"), ["a cat"])


def test_a_clip_larger_than_the_server_takes_is_refused_before_it_is_sent(serve):
    remote = Remote(serve(largest=HEADER_LIMIT + 1000).url, retry=QUICK)
    with pytest.raises(ValueError, match=r"--largest 2 "):
        remote(films(1, frames=64), ["a"])


def test_a_batch_larger_than_the_server_takes_is_cut(serve):
    critic = Brightness()
    remote = Remote(serve(critic, largest=HEADER_LIMIT + 1000).url, retry=QUICK)
    videos = films(1, 2, 3, 4)
    assert remote._clips == 16  # it is the bytes that are too many
    assert remote(videos, ["a"] * 4).values[:, 0].tolist() == [1, 2, 3, 4]


def test_what_cannot_be_served_is_reported_at_once():
    with pytest.raises(ValueError, match="unknown critic 'nosuch'; expected one of aesthetic"):
        serve_critic(ServeConfig("nosuch", port=0, device="cpu"))
    with pytest.raises(ValueError, match="port is 70000"):
        ServeConfig("world", port=70000)
    with pytest.raises(ValueError, match="BESTTAKE_TOKEN"):
        serve_critic(ServeConfig("world", host="0.0.0.0", port=0, device="cpu"))
