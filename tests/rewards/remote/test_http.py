"""One server's client: connections are kept, time-outs hold, and failures are distinguished."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from besttake.rewards.remote.http import Client, ConnectionLostError, NoAnswerError, RetryPolicy, ServerBusyError

QUICK = RetryPolicy(answer=0.2, connect=0.2, tries=3, pause=0.001)


@pytest.fixture
def server():
    """Answers by path: /503, /429, /500, /404 with that status, /slow late, /dies never, anything else with JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            made.connections += 1

        def do_POST(self):
            made.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def do_GET(self):
            if self.path == "/dies":
                self.close_connection = True
                return
            if self.path == "/slow":
                time.sleep(0.4)
            status = int(self.path[1:]) if self.path[1:].isdigit() else 200
            content = b"<html>" if self.path == "/html" else b'{"fine": true}'
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "7")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.connections, made.bodies = True, 0, []
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def client(server, **settings):
    return Client(server.url, None, QUICK, busy=(503,), transient=(429,), **settings)


def test_connections_are_kept_and_shared_by_threads(server):
    http = client(server)
    for _ in range(3):
        assert http.request("GET", "/").json() == {"fine": True}
    assert server.connections == 1
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: http.request("POST", "/", [b"part ", b"%d" % i]).status, range(20)))
    assert answers == [200] * 20
    assert sorted(server.bodies) == sorted(b"part %d" % i for i in range(20))
    assert server.connections <= 5


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/503", ServerBusyError), ("/429", NoAnswerError), ("/500", NoAnswerError), ("/dies", ConnectionLostError)],
)
def test_failures_are_distinguished(server, path, kind):
    with pytest.raises(NoAnswerError) as raised:
        client(server).request("GET", path)
    assert type(raised.value) is kind
    assert raised.value.retry_after == {"/503": 1.0, "/429": 7.0}.get(path)


def test_silence_ends_in_a_time_out(server):
    with pytest.raises(NoAnswerError, match="did not answer in time"):
        client(server).request("GET", "/slow")


def test_other_statuses_are_answers_and_only_objects_are_json(server):
    assert client(server).request("GET", "/404").status == 404
    with pytest.raises(NoAnswerError, match="invalid JSON: '<html>'"):
        client(server).request("GET", "/html").json()


def failing(*faults):
    """A request that raises these one by one, then answers."""
    left = list(faults)

    def request():
        if left:
            raise left.pop(0)
        return "answer"

    return request


def test_a_request_is_repeated_within_its_tries():
    retried = []
    assert QUICK.call(failing(NoAnswerError("a"), NoAnswerError("b")), retried.append) == "answer"
    assert [str(fault) for fault in retried] == ["a", "b"]
    with pytest.raises(NoAnswerError, match="c"):
        QUICK.call(failing(*map(NoAnswerError, "abc")), retried.append)


def test_a_busy_server_is_waited_for_beyond_the_tries_but_not_for_ever():
    busy = [ServerBusyError("full", 0.001)] * 9
    assert QUICK.call(failing(*busy), lambda _: None) == "answer"
    with pytest.raises(ServerBusyError):
        RetryPolicy(answer=0.01, tries=3).call(failing(*busy * 99), lambda _: None)


def test_delays_double_unless_the_server_asks_for_one():
    policy = RetryPolicy(pause=0.5)
    assert [policy.delay(NoAnswerError("x"), n) for n in (1, 2, 3, 99)] == [0.5, 1.0, 2.0, 60.0]
    assert policy.delay(NoAnswerError("x", retry_after=3.0), 5) == 3.0
