"""Video files: reading by time, cropping and resizing without distortion, writing for browsers.

Colour matrix and range are taken from the file, by default BT.601 and limited, as in FFmpeg; transparent videos are
composited over black; HDR is rejected.

Inside the library a video is float `f c h w` in [-1, 1]; in a file it is uint8 `f h w c`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.codec.context import CodecContext
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from besttake.data.files import atomic
from besttake.data.picture import over_black, read_picture, refuse_hdr
from besttake.runtime.configuration import require

TIME_TOLERANCE = 5e-4
"""Tolerance in seconds: Matroska rounds a frame's time to the millisecond."""

CRF = "12"
"""x264's constant rate factor: visually lossless."""

TONE_MAPPING = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=limited,format=yuv420p"
)
"""FFmpeg's filters for converting HDR to SDR."""

HEIC = ("heic", "heix", "heim", "heis", "mif1")
"""Container brands of HEIC pictures, which use a video container."""

BT709 = 1
"""The number of BT.709 in H.264's tables of matrices, primaries and transfer functions."""


@dataclass(frozen=True)
class VideoInfo:
    """Width and height in pixels as displayed (rotation applied), mean frames per second, frame count, seconds."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float


def to_uint8(video: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b h w c"]:
    """From [-1, 1] (clipped) to 0..255, channels last."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def to_float(frames: UInt8[Tensor, "*b h w c"]) -> Float[Tensor, "*b c h w"]:
    """From 0..255, channels last, to float32 in [-1, 1], channels first; `to_uint8` is its exact inverse."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def read_video(
    path: str | Path,
    *,
    fps: float | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    start_seconds: float = 0.0,
) -> Float[Tensor, "f c h w"]:
    """Read a clip of a video file as float32 in [-1, 1].

    Args:
        fps: frame k of the clip is the one displayed at `start_seconds + k / fps`, for any constant or variable rate of
            the file. None: all frames of the file.
        frames: number of frames. None: to the end of the file.
        size: (height, width): cropped from the centre to this aspect ratio, then resized with antialiasing. None: as
            displayed, with rotation applied and square pixels.
        start_seconds: start of the clip, relative to the file's first frame.

    Raises:
        ValueError: the file is missing, unreadable, truncated, without frames, HDR, or too short for the clip.
    """
    require(fps is None or fps > 0, "fps", fps, "a rate above 0, or None")
    require(frames is None or frames >= 1, "frames", frames, "1 or more, or None")
    require(size is None or min(size) >= 1, "size", size, "height and width of 1 or more, or None")
    clip: list[Tensor] = []
    duration = 0.0
    with _opened(path) as (container, stream):
        for frame, duration in _timeline(container, stream):
            copies = _due_frames(len(clip), fps, start_seconds, duration)
            if copies:
                clip += [_picture(frame, stream, size)] * copies
            if frames is not None and len(clip) >= frames:
                break
    if frames is not None and len(clip) < frames:
        raise ValueError(_too_short(path, duration, len(clip), frames, fps, start_seconds))
    if not clip:
        raise ValueError(f"{path} lasts {duration:.3f} s and has no frame at {start_seconds:g} s")
    return to_float(torch.stack(clip[:frames]))


def check_length(path: str | Path, seconds: float, fps: float, frames: int) -> None:
    """ValueError if a file of `seconds` is too short for a clip of `frames` at `fps`, without reading it.

    A file that may be one frame too short passes: only reading it tells.
    """
    if seconds + 1 / fps + TIME_TOLERANCE <= (frames - 1) / fps:
        raise ValueError(_too_short(path, seconds, _due_frames(0, fps, 0.0, seconds), frames, fps, 0.0))


def read_frame(path: str | Path, size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    """Read an image, or the first frame of a video, cropped and resized to (height, width); float32 in [-1, 1].

    The file's content decides which it is.

    Raises:
        ValueError: the file is missing, neither a readable image nor video, or HDR.
    """
    picture = read_picture(path)
    if picture is not None:
        return to_float(_crop_and_resize(picture, size, 1.0))
    try:
        return read_video(path, frames=1, size=size)[0]
    except ValueError as error:
        raise ValueError(f"{error}; nor is it an image that Pillow can read") from error


def write_video(path: str | Path, video: Tensor, fps: float, upscale: int = 1) -> None:
    """Write an H.264 mp4 that browsers play, atomically.

    Args:
        video: float `f c h w` in [-1, 1], or uint8 `f h w c`. An odd height or width is padded by one pixel (the
            edge repeated), since 4:2:0 video has even sides.
        upscale: factor by which every pixel is repeated; 8 is good for viewing a video of 32 x 32.

    Raises:
        ValueError: shape, type or a number is not as above.
    """
    pixels = _pixels(video)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"video is {tuple(video.shape)} {video.dtype}, expected float f 3 h w or uint8 f h w 3")
    require(fps > 0, "fps", fps, "a rate above 0")
    require(upscale >= 1, "upscale", upscale, "1 or more")
    pixels = _enlarge(pixels, upscale)
    _, height, width, _ = pixels.shape
    pixels = np.pad(pixels, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    with (
        atomic(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": CRF})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def upscale_for(video: Tensor, width: int = 256) -> int:
    """The `upscale` factor that brings a small video to about `width` pixels, against blur by 4:2:0 subsampling."""
    return max(1, width // video.shape[-1])


def probe(path: str | Path) -> VideoInfo:
    """Size, rate and length of a video file, by reading all of it and decoding its first frame.

    Raises:
        ValueError: the file is missing, unreadable, truncated, without frames or HDR.
    """
    first, frames, starts, ends = None, 0, [], []
    with _opened(path) as (container, stream):
        decoder = _decoder(stream)
        for packet in _packets(container, stream):
            first = first or next(iter(decoder.decode(packet)), None)
            frames += packet.size > 0 and not packet.is_discard
            if packet.pts is not None and not packet.is_discard:
                starts.append(float(packet.pts * packet.time_base))
                ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if first is None:
            raise _BrokenError("it has no frames")
        rate = _rate(stream)
        height, width = _picture(first, stream, None).shape[:2]
    duration = max(ends) - min(starts) if starts else frames / rate
    return VideoInfo(width, height, frames / duration if duration else rate, frames, duration)


def contact_sheet(videos: Tensor | Sequence[Tensor], path: str | Path, upscale: int = 1) -> None:
    """Write a PNG with one row per video and its frames from left to right; short rows end in black.

    Args:
        videos: `b f c h w` in [-1, 1], or a sequence of `f c h w` of one height and width; uint8 `f h w c` as well.
    """
    gap = 1
    rows = [_pixels(video) for video in videos]
    if not rows or len({row.shape[1:] for row in rows}) > 1:
        raise ValueError(f"videos are {[tuple(row.shape) for row in rows]} (f h w c), expected some of one size")
    _, height, width, channels = rows[0].shape
    across = max(len(row) for row in rows)
    sheet = np.zeros((len(rows) * (height + gap) - gap, across * (width + gap) - gap, channels), np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    with atomic(path) as temporary:
        Image.fromarray(_enlarge(sheet[None], upscale)[0]).save(temporary, format="PNG")


def thumbnail(video: Tensor, frames: int = 16, height: int = 160) -> Tensor:
    """A video `f c h w` reduced for a contact sheet: at most `frames` frames of at most `height` pixels."""
    some = video[:: -(-len(video) // frames)].cpu()
    scale = height / some.shape[-2]
    return F.interpolate(some, scale_factor=scale, mode="area") if scale < 1 else some


def _pixels(video: Tensor) -> np.ndarray:
    video = video.detach().cpu()
    return (to_uint8(video) if video.is_floating_point() else video).numpy()


def _enlarge(pixels: np.ndarray, upscale: int) -> np.ndarray:
    return pixels.repeat(upscale, axis=1).repeat(upscale, axis=2)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video stream; errors of FFmpeg or the body become a ValueError that names the file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty: 0 bytes")
    try:
        with av.open(str(path)) as container:
            _refuse_picture(container)
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise _BrokenError("it has no video stream")
            stream.thread_type = "AUTO"
            if stream.codec_context is None:
                raise _BrokenError("it is truncated, or of a codec that FFmpeg does not know")
            _refuse_hdr(
                stream.codec_context.color_trc
            )  # of the container, since some codecs' frames have no such information
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error.strerror} (is it truncated?)") from error
    except (_BrokenError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def _refuse_hdr(transfer: int) -> None:
    refuse_hdr(transfer, f'convert it first: ffmpeg -i IN -vf "{TONE_MAPPING}" OUT')


def _refuse_picture(container: InputContainer) -> None:
    """Reject pictures, some of which FFmpeg misreads: floating point as integers, one tile of a HEIC as the whole."""
    kind = container.format.name.removesuffix("_pipe")
    if kind != container.format.name and kind != "webp":  # WebP may be an animation
        raise _BrokenError(f"it is a picture ({kind}); save it as PNG or JPEG")
    if container.metadata.get("major_brand") in HEIC:
        raise _BrokenError("it is a picture (heic); save it as PNG or JPEG")


class _BrokenError(Exception):
    """A fault of a file, to which `_opened` adds the file's name."""


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets of `stream`; raises at the end if the file is shorter than its header says.

    All streams are read, since the header's length is that of the longest one.
    """
    end = 0.0
    for packet in container.demux():
        if packet.is_corrupt:
            raise _BrokenError("it is truncated or damaged, a frame is cut off")
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base is not None:
            end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream:
            yield packet
    header_end = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
    if end < header_end - max(0.1, 2 / _rate(stream)):
        raise _BrokenError(
            f"it is truncated: by its header it lasts {header_end:.3f} s, but the frames end at {end:.3f} s"
        )


def _timeline(container: InputContainer, stream: VideoStream) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames in display order, each with the time (in seconds from the first frame) at which its display ends."""
    previous, previous_time, first_time, decoder = None, 0.0, 0.0, _decoder(stream)
    for packet in _packets(container, stream):
        for frame in decoder.decode(packet):
            time = frame.time if frame.time is not None else previous_time + 1 / _rate(stream)
            if previous is None:
                first_time = time
            else:
                yield previous, time - first_time
            previous, previous_time = frame, time
    if previous is None:
        raise _BrokenError("it has no frames")
    length = (
        float(previous.duration * previous.time_base) if previous.duration and previous.time_base else 1 / _rate(stream)
    )
    yield previous, previous_time - first_time + length


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """The decoder of a stream: libvpx for WebM with alpha, which FFmpeg's own VP8 and VP9 decoders ignore."""
    codec = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if codec is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    decoder = CodecContext.create(codec, "r")
    assert isinstance(decoder, VideoCodecContext)
    return decoder


def _too_short(path: str | Path, duration: float, available: int, frames: int, fps: float | None, start: float) -> str:
    needed = f"{frames} frames" + (f" at {fps:g} fps" if fps else "") + f" from {start:g} s"
    seconds = f", which need more than {start + (frames - 1) / fps:.3f} s" if fps else ""
    return f"{path} is too short: it lasts {duration:.3f} s and has {available} of {needed}{seconds}"


def _rate(stream: VideoStream) -> float:
    """Frames a second; FFmpeg assumes 25 for elementary streams, whose rate only the decoder knows."""
    decoded = stream.codec_context.framerate if stream.container.format.name in ("h264", "hevc") else None
    return float(decoded or stream.average_rate or stream.guessed_rate or 25)


def _due_frames(k: int, fps: float | None, start: float, leaves: float) -> int:
    """The number of clip frames, from the k-th on, that are due before the display of a file's frame ends."""
    if fps is None:
        return int(leaves > start + TIME_TOLERANCE)
    copies = 0
    while start + (k + copies) / fps + TIME_TOLERANCE < leaves:
        copies += 1
    return copies


def _picture(frame: av.VideoFrame, stream: VideoStream, size: tuple[int, int] | None) -> UInt8[Tensor, "h w 3"]:
    """A frame with rotation applied and square pixels, cropped to the aspect ratio of `size` and resized to it."""
    _refuse_hdr(frame.color_trc)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        rgb = over_black(frame.to_ndarray(format="rgba", threads=1))
    else:
        rgb = frame.to_ndarray(format="rgb24", threads=1)  # threads are started anew for each frame
    quarters = round(frame.rotation / 90) % 4
    rgb = np.rot90(rgb, quarters)
    pixel = float(stream.sample_aspect_ratio or 1)  # width over height of one pixel
    if quarters % 2:
        pixel = 1 / pixel
    height, width = rgb.shape[:2]
    return _crop_and_resize(rgb, size or (height, round(width * pixel)), pixel)


def _crop_and_resize(rgb: np.ndarray, size: tuple[int, int], pixel: float) -> UInt8[Tensor, "h w 3"]:
    """Crop a picture, whose pixels have the aspect ratio `pixel`, to the aspect ratio of `size`, and resize it."""
    height, width = rgb.shape[:2]
    aspect = size[1] / size[0] / pixel
    cut_height = min(height, max(1, round(width / aspect)))
    cut_width = min(width, max(1, round(height * aspect)))
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    cut = torch.from_numpy(rgb[top : top + cut_height, left : left + cut_width].copy())
    if cut.shape[:2] == size:
        return cut
    pixels = cut.movedim(-1, 0)[None].float()
    if cut_height % size[0] == cut_width % size[1] == 0:  # the mean of whole pixels inverts `upscale`
        resized = F.interpolate(pixels, size, mode="area")
    else:
        resized = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return resized[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
