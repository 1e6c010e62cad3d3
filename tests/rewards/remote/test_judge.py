import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from besttake.data.video import probe, read_video
from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.panel import RewardConfig, load_panel
from besttake.rewards.partial import PartialScore, scored_mask
from besttake.rewards.remote.answers import read_answer
from besttake.rewards.remote.judge import Judge, JudgeConfig, chosen
from besttake.runtime.configuration import from_dict

RUBRIC = "Rate the video of '{prompt}'. Answer with two lines, visual quality: <1-5> and text alignment: <1-5>."
RANGES = {"visual quality": (1.0, 5.0), "text alignment": (1.0, 5.0)}
GOOD = "visual quality: 4\ntext alignment: 2.5"


class Server:
    """A chat completion server on a thread: `replies` come one by one, the last for ever.

    A reply is the text to answer, a status to fail with, or a function of the handler and the question.
    """

    def __init__(self):
        self.replies, self.questions, self.headers, self.busy, self.most_busy = [GOOD], [], [], 0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.questions.append(question)
                    outer.headers.append((self.path, dict(self.headers)))
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                    outer.busy += 1
                    outer.most_busy = max(outer.most_busy, outer.busy)
                if callable(reply):
                    reply = reply(self, question)
                with outer.lock:
                    outer.busy -= 1  # before the reply leaves: the next question may come at once
                if isinstance(reply, int):
                    self.send(b'{"error": "not now"}', reply, {"Retry-After": "0"} if reply == 429 else {})
                elif reply is not None:
                    self.send(completion(reply))

            def send(self, body, status=200, headers=None):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def completion(text, finish="stop"):
    usage = {"prompt_tokens": 1000, "completion_tokens": 50}
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def judge(server, **settings):
    defaults = {
        "url": server.url,
        "model": "seer",
        "rubric": RUBRIC,
        "dimensions": RANGES,
        "wait": 0.01,
        "timeout": 5.0,
    }
    return Judge(JudgeConfig(**{**defaults, **settings}))


def film(b=1, frames=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(b, frames, 3, 20, 40, generator=generator) * 2 - 1


def test_an_answer_becomes_a_score_and_tokens_are_paid(server):
    critic = judge(server, price_in=2.0, price_out=10.0)
    score = score_checked(critic, film(2), ["a ball", "a ring"])
    assert torch.equal(score.values, torch.tensor([[4, 2.5], [4, 2.5]]))
    assert score.dimensions == ("visual quality", "text alignment")
    assert not isinstance(score, PartialScore)
    assert critic.metrics() == {
        **dict.fromkeys(("judge/failures", "judge/unusable", "judge/abstentions"), 0.0),
        **{"judge/answers": 2.0, "judge/tokens_in": 2000.0, "judge/tokens_out": 100.0},
        "judge/cost": pytest.approx((2000 * 2 + 100 * 10) / 1e6),
    }


def test_the_question_holds_the_rubric_the_prompt_and_the_requested_frames(server, monkeypatch):
    monkeypatch.setenv("SEER_KEY", "s3cret")
    video = film()
    judge(server, frames=3, picture="png", side=20, api_key="SEER_KEY", temperature=0.5)(video, ["a {odd} ball"])
    (question,), ((path, headers),) = server.questions, server.headers
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer s3cret"
    assert (question["model"], question["temperature"], question["max_tokens"]) == ("seer", 0.5, 1024)
    *pictures, text = question["messages"][0]["content"]
    assert text["text"] == RUBRIC.replace("{prompt}", "a {odd} ball")
    images = [decoded(picture["image_url"]["url"], "png") for picture in pictures]
    assert [image.size for image in images] == [(20, 10)] * 3


def decoded(url, picture):
    head, _, data = url.partition(",")
    assert head == f"data:image/{picture};base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_png_frame_arrives_as_a_file_would_hold_it(server):
    video = film(frames=1)
    judge(server, picture="png")(video, ["a ball"])
    image = decoded(server.questions[0]["messages"][0]["content"][0]["image_url"]["url"], "png")
    sent = torch.from_numpy(np.array(image)).long()
    assert torch.equal(sent, ((video[0, 0] + 1) * 127.5).round().long().permute(1, 2, 0))


def test_frames_are_sent_evenly_or_by_time():
    config = JudgeConfig(model="m", rubric=RUBRIC, dimensions=RANGES, frames=4)
    assert chosen(16, 8.0, config) == [0, 5, 10, 15]
    assert chosen(2, 8.0, config) == [0, 1]
    by_time = JudgeConfig(model="m", rubric=RUBRIC, dimensions=RANGES, frames=4, frame_rate=2.0)
    assert chosen(16, 8.0, by_time) == [0, 4, 8, 12]
    assert chosen(160, 8.0, by_time) == [0, 52, 104, 156]


def test_scores_stay_with_their_videos_however_late_answers_come(server):
    def late(handler, question):
        prompt = question["messages"][0]["content"][-1]["text"].split("'")[1]
        time.sleep(0.05 * (6 - int(prompt)))
        return f"visual quality: {int(prompt) / 2 + 1}\ntext alignment: 1"

    server.replies = [late]
    critic = judge(server, concurrency=3)
    score = critic(film(6), [str(i) for i in range(6)])
    assert score["visual quality"].tolist() == [1, 1.5, 2, 2.5, 3, 3.5]
    assert 1 < server.most_busy <= 3


@pytest.mark.parametrize("failures", [[429], [500, 503, 429], [lambda handler, _: handler.send(b"<html>busy")]])
def test_what_passes_is_requested_again(server, failures):
    server.replies = [*failures, GOOD]
    critic = judge(server)
    assert critic(film(), ["a ball"]).values.tolist() == [[4, 2.5]]
    assert critic.usage.failures == len(failures)


def cut_short(handler, _):
    body = completion(GOOD)
    handler.send(body[:40], headers={"Content-Length": str(len(body))})


def hang_up(handler, _):
    handler.close_connection = True


def hang(handler, _):
    time.sleep(0.8)


@pytest.mark.parametrize(
    "fault", [500, 429, cut_short, hang_up, hang, lambda handler, _: handler.send(b'{"choices": []}')]
)
def test_what_does_not_pass_ends_the_run_after_so_many_tries(server, fault):
    server.replies = [fault]
    with pytest.raises(ConnectionError, match=r"critic judge: http://127.*failed 3 times; the last error: "):
        judge(server, retries=2, timeout=0.2, unusable="abstain")(film(), ["a ball"])
    assert len(server.questions) == 3


def test_a_server_that_is_not_there_is_a_connection_error(server):
    server.http.server_close()
    with pytest.raises(ConnectionError, match="failed 2 times"):
        judge(server, retries=1)(film(), ["a ball"])


def test_a_refusal_is_not_requested_again_and_does_not_reveal_the_key(server, monkeypatch):
    monkeypatch.setenv("SEER_KEY", "s3cret")
    server.replies = [401]
    with pytest.raises(
        ValueError, match=r"rejects the request \(401.*not now.*check the judge's url, model"
    ) as refused:
        judge(server, api_key="SEER_KEY")(film(), ["a ball"])
    assert len(server.questions) == 1
    assert "s3cret" not in str(refused.value)


UNUSABLE = {
    "invalid JSON": "I like this video very much!",
    "nothing": "",
    "half an answer": "visual quality: 4",
    "a wrong dimension": "visual quality: 4\nprompt alignment: 2",
    "out of range": "visual quality: 4\ntext alignment: 6",
    "below its range": "visual quality: -4\ntext alignment: 3",
    "said twice": GOOD + "\nvisual quality: 2",
    "of five": "visual quality: 4/5\ntext alignment: 3/5",
    "in words": "visual quality: four\ntext alignment: two",
    "only thought": f"<think>{GOOD}</think> It is good.",
    "a flood of dashes": "-" * 100_000,
    "not a number": "visual quality: nan\ntext alignment: 2",
}


@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_answer_is_an_error_or_an_abstention_never_a_number(server, text):
    server.replies = [text]
    with pytest.raises(ValueError, match=r"critic judge: the answer for the video of 'a ball' is unusable: .*abstain"):
        judge(server)(film(), ["a ball"])
    critic = judge(server, unusable="abstain")
    score = critic(film(), ["a ball"])
    assert scored_mask(score).tolist() == [False]
    assert (critic.usage.unusable, critic.usage.abstentions) == (1, 1)


def test_an_answer_that_was_cut_off_is_not_used_even_if_it_reads_well(server):
    server.replies = [lambda handler, _: handler.send(completion(GOOD, finish="length"))]
    with pytest.raises(ValueError, match="it is truncated; raise max_tokens"):
        judge(server)(film(), ["a ball"])


def test_only_the_videos_without_an_answer_lack_a_score(server):
    server.replies = [GOOD, "no idea", GOOD]
    score = judge(server, unusable="abstain", concurrency=1)(film(3), ["a", "b", "c"])
    assert scored_mask(score).tolist() == [True, False, True]
    assert score.values.tolist() == [[4, 2.5], [0, 0], [4, 2.5]]


def test_with_a_temperature_an_unusable_answer_is_requested_again(server):
    server.replies = ["no idea", "none", GOOD]
    critic = judge(server, temperature=0.7)
    assert critic(film(), ["a ball"]).values.tolist() == [[4, 2.5]]
    assert (critic.usage.answers, critic.usage.unusable, critic.usage.tokens_in) == (3, 2, 3000)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "visual quality: 4; text alignment: 2.5",
        "It moves well: yes, visual quality: 4, text alignment: 2.5",
        "1. **Visual quality:** 4\n2. **Text alignment**: 2.5.",
        "(1) visual quality: 4;\n(2) text alignment: 2.5",
        f"<think>visual quality: 1? Rather more.</think>\n\nHere is my verdict:\n{GOOD}\nI hope that helps.",
    ],
)
def test_lines_are_read_as_models_write_them(text):
    assert read_answer(text, RANGES, "lines") == {"visual quality": 4.0, "text alignment": 2.5}


def test_the_answer_of_videoscore2_is_read():
    ranges = dict.fromkeys(
        ("visual quality", "text-to-video alignment", "physical/common-sense consistency"), (1.0, 5.0)
    )
    text = "It is smooth.\nvisual quality: 4; text-to-video alignment: 3, physical/common-sense consistency: 5"
    assert list(read_answer(text, ranges, "lines").values()) == [4, 3, 5]


VIDEOSCORE2 = """<think>
The video is sharp. (1) visual quality: good.
</think>

(1) visual quality \N{EN DASH} clarity, smoothness, artifacts: 3
(2) text-to-video alignment \N{EN DASH} fidelity to the prompt: 4
(3) physical/common-sense consistency \N{EN DASH} naturalness and physics plausibility: 2"""
"""As the released model answers, and not as it is asked to."""
UNIFIEDREWARD = "Alignment Score (1-5): 2.4036\nPhysics Score (1-5): 3.0987\nStyle Score (1-5): 3.3889"


@pytest.mark.parametrize(
    ("name", "reply", "scores", "kinds"),
    [
        ("videoscore2", VIDEOSCORE2, [3, 4, 2], ["video_url", "text"]),
        ("unifiedreward", UNIFIEDREWARD, [2.4036, 3.0987, 3.3889], ["image_url"] * 16 + ["text"]),
    ],
)
def test_judges_with_a_name_ask_as_their_authors_do(server, name, reply, scores, kinds):
    server.replies = [reply]
    critic = load_reward(name, path=server.url)
    score = score_checked(critic, film(frames=48), ["a {red} ball"], fps=16.0)
    torch.testing.assert_close(score.values, torch.tensor([scores], dtype=torch.float32))
    assert critic.name == name
    *visuals, text = server.questions[0]["messages"][0]["content"]
    assert [part["type"] for part in (*visuals, text)] == kinds
    assert "a {red} ball" in text["text"]


def test_frames_are_sent_as_one_video_to_models_of_videos(server, tmp_path):
    judge(server, picture="mp4", frame_rate=2.0, side=20)(film(frames=24), ["a ball"], 8.0)
    visual, _ = server.questions[0]["messages"][0]["content"]
    head, _, content = visual["video_url"]["url"].partition(",")
    assert head == "data:video/mp4;base64"
    (tmp_path / "sent.mp4").write_bytes(base64.b64decode(content))
    info = probe(tmp_path / "sent.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (6, 2.0, 20, 10)
    frames = read_video(tmp_path / "sent.mp4")
    assert (frames.mean((1, 2, 3)) - film(frames=24)[0, ::4].mean((1, 2, 3))).abs().max() < 0.05


@pytest.mark.parametrize(
    "text",
    [
        '{"visual quality": 4, "text alignment": 2.5}',
        '```json\n{"Visual quality": 4, "text alignment": 2.5}\n```',
        '{"reason": "smooth", "visual quality": 4, "text alignment": 2.5}',
    ],
)
def test_json_is_read_bare_fenced_and_with_reasons(text):
    assert read_answer(text, RANGES, "json") == {"visual quality": 4.0, "text alignment": 2.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "Expecting value"),
        ('{"visual quality": 4, "text align', "Unterminated"),
        ('{"visual quality": 4}', "missing: text alignment"),
        ('{"visual quality": 4, "text alignment": 2, "style": 3}', "unexpected: style"),
        ('{"visual quality": 4, "text alignment": 2, "text alignment": 3}', "occurs twice"),
        ('{"visual quality": 4, "text alignment": true}', "not a number"),
        ('{"visual quality": 4, "text alignment": [2]}', "not a number"),
        ('{"visual quality": 4, "text alignment": "2"}', "missing: text alignment"),
        ('{"visual quality": 4, "text alignment": NaN}', "outside its range"),
        ('{"visual quality": 4, "text alignment": 1e400}', "outside its range"),
        ("[4, 2.5]", "list; expected an object"),
    ],
)
def test_json_of_another_form_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_answer(text, RANGES, "json")


def test_a_judge_is_found_by_the_folder_that_holds_its_rubric(server, tmp_path):
    settings = {"url": server.url, "model": "seer", "rubric": RUBRIC, "dimensions": {"visual quality": [1, 5]}}
    (tmp_path / "config.json").write_text(json.dumps({"critic": "judge", **settings}))
    critic = load_reward(tmp_path)
    assert critic.card.ranges == {"visual quality": (1.0, 5.0)}
    assert critic(film(), ["a ball"]).values.tolist() == [[4]]
    with pytest.raises(ValueError, match="a judge needs a rubric"):
        load_reward("judge")


def test_a_judge_is_named_by_its_file(server, tmp_path):
    lines = [f"url: {server.url}", "model: seer", f'rubric: "{RUBRIC}"', "dimensions: {visual quality: [1, 5]}"]
    (tmp_path / "harsh.yaml").write_text("\n".join(lines))
    panel = load_panel(RewardConfig(str(tmp_path / "harsh.yaml")))
    assert panel(film(), ["a ball"]).values.tolist() == [[4]]
    (critic,) = (reward for reward, _ in panel.critics.values())
    assert critic.name == "harsh"
    (tmp_path / "harsh.yaml").write_text("model: seer\nrubrik: none")
    with pytest.raises(ValueError, match=r"judge .*harsh.yaml: unknown key 'rubrik'; did you mean 'rubric'"):
        load_reward(tmp_path / "harsh.yaml")
    with pytest.raises(ValueError, match=r"judge .*none.yaml: .* cannot be read"):
        load_reward("none.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost:8000"}, "expected http"),
        ({"model": ""}, "model is .*expected the model"),
        ({"dimensions": {}}, "dimensions is {}; expected ranges"),
        ({"dimensions": {"visual quality": [5, 1]}}, "ranges from 5.0 to 1.0"),
        ({"dimensions": {"beauty": [1, 5]}}, "does not name the dimension 'beauty'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout": 0}, "timeout is 0"),
        ({"answer": "words"}, "'answer' is 'words'"),
        ({"dimensions": {"visual quality": [1]}}, "a list of 2"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, message):
    settings = {"model": "seer", "rubric": RUBRIC, "dimensions": {"visual quality": [1, 5]}}
    with pytest.raises(ValueError, match=message):
        from_dict(JudgeConfig, {**settings, **change})


def test_a_key_that_is_not_set_is_found_before_any_request(server, monkeypatch):
    monkeypatch.delenv("SEER_KEY", raising=False)
    with pytest.raises(ValueError, match="the environment variable SEER_KEY is not set"):
        judge(server, api_key="SEER_KEY")


def test_another_rubric_is_another_critic_and_another_timeout_is_not(server):
    one = judge(server)
    assert judge(server, timeout=1.0, price_in=3.0).identity == one.identity
    assert judge(server, rubric=RUBRIC + " Be strict.").identity != one.identity
