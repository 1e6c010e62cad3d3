"""Small videos to read back: frame i is a flat grey that tells i."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from besttake.data.real import RealClip

STEP = 5
QUALITY = {"libx264": {"qmax": "4"}, "mpeg4": {"qmax": "2"}, "libvpx": {"crf": "4", "b": "1000000"}}


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video of numbered frames; `times` (seconds) makes its rate vary."""

    def write(name, n=24, fps=24, codec="libx264", size=(32, 48), times: Sequence[float] | None = None, options=None):
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as out:
            stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=QUALITY[codec])
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i in range(n):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), STEP * i, np.uint8), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = round(1000 * times[i]), Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return path

    return write


@pytest.fixture
def numbers() -> Callable[..., list[int]]:
    """Which frames of a `film` a video float `f c h w` shows."""

    def read(video):
        return [round(float((frame.mean() + 1) * 127.5) / STEP) for frame in video]

    return read


@pytest.fixture
def clips(tmp_path, film):
    """Two small videos in a folder, and the clips they should be found as."""
    film("one.mp4", n=24, fps=24)
    film("two.avi", n=20, fps=10, codec="mpeg4")
    return [RealClip(tmp_path / "one.mp4", "the first, clip"), RealClip(tmp_path / "two.avi", "the second clip")]
