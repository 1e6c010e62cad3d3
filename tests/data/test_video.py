from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from besttake.data.video import contact_sheet, probe, read_frame, read_video, thumbnail, to_float, to_uint8, write_video

FORMATS = [
    ("a.mp4", "libx264", 30),
    ("a.mp4", "libx264", Fraction(30000, 1001)),
    ("a.mp4", "libx264", 24),
    ("a.mkv", "libx264", 30),
    ("a.avi", "libx264", 25),
    ("a.avi", "mpeg4", 12),
    ("a.webm", "libvpx", 30),
]


@pytest.mark.parametrize(("name", "codec", "rate"), FORMATS)
@pytest.mark.parametrize("fps", [8, 10, 30, 60])
def test_frames_are_picked_by_time(film, numbers, name, codec, rate, fps):
    path = film(name, n=25, fps=rate, codec=codec)
    video = read_video(path, fps=fps)
    half_a_millisecond = Fraction(1, 2000)
    on_screen = [int((Fraction(k, fps) + half_a_millisecond) * rate) for k in range(200)]
    assert numbers(video) == [i for i in on_screen if i < 25]


def test_variable_frame_rate_is_read_by_time_not_by_stride(film, numbers):
    times = [0, 0.1, 0.2, 0.3, 1.3, 1.35, 1.4, 1.45, 1.5, 2.0]
    path = film("vfr.mp4", n=10, times=times)
    due = [k / 8 for k in range(16)]
    shown = [max(i for i, time in enumerate(times) if time <= t + 1e-6) for t in due]
    assert numbers(read_video(path, fps=8, frames=16)) == shown
    assert shown[:12] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 5]


def test_without_a_rate_the_files_own_frames_come(film, numbers):
    assert numbers(read_video(film("vfr.mkv", n=5, times=[0, 0.1, 0.5, 0.6, 2]))) == [0, 1, 2, 3, 4]
    assert numbers(read_video(film("a.mp4", n=9), frames=4)) == [0, 1, 2, 3]


def test_start_seconds(film, numbers):
    path = film("a.mp4", n=48, fps=24)
    assert numbers(read_video(path, fps=8, frames=3, start_seconds=1.0)) == [24, 27, 30]
    assert numbers(read_video(path, frames=2, start_seconds=0.5)) == [12, 13]
    with pytest.raises(ValueError, match=r"no frame at 3 s"):
        read_video(path, start_seconds=3)


def test_too_short_names_the_file_and_what_is_needed(film):
    path = film("short.mp4", n=48, fps=24)
    assert len(read_video(path, fps=8, frames=16)) == 16
    with pytest.raises(ValueError, match=r"short\.mp4 is too short: it lasts 2\.000 s.* 16 of 17 .*more than 2\.000 s"):
        read_video(path, fps=8, frames=17)


def square(tmp_path, picture, name="square.mp4", sample_aspect=None):
    """A video of one still picture, uint8 h w 3."""
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv444p"
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def box(height, width, tall, wide):
    """A white rectangle in the middle of black."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = (height - tall) // 2, (width - wide) // 2
    picture[top : top + tall, left : left + wide] = 255
    return picture


def extent(video):
    """Height and width of what is white in the first frame."""
    white = video[0].mean(0) > 0
    return int(white.any(1).sum()), int(white.any(0).sum())


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (97, 131)])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32)])
def test_cropped_and_resized_without_distortion(tmp_path, shape, size):
    video = read_video(square(tmp_path, box(*shape, 32, 32)), size=size)
    assert video.shape == (2, 3, *size)
    tall, wide = extent(video)
    assert abs(tall - wide) <= 1
    scale = max(size[0] / shape[0], size[1] / shape[1])  # as little is cut off as the aspect ratio allows
    assert abs(tall - 32 * scale) <= 1


def test_what_was_written_enlarged_is_read_as_it_was(tmp_path):
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0 - 0.5
    video = checks.expand(4, 3, 32, 32)
    write_video(tmp_path / "a.mp4", video, fps=8, upscale=8)
    assert (read_video(tmp_path / "a.mp4", size=(32, 32)) - video).abs().max() < 0.05


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 1::4] = 255
    video = read_video(square(tmp_path, stripes), size=(16, 16))
    assert (video[..., 2:-2] + 0.5).abs().max() < 0.1  # the mean of one white column in four


def test_pixels_that_are_not_square_become_square(tmp_path):
    path = square(tmp_path, box(64, 48, 32, 16), sample_aspect=Fraction(2))
    assert read_video(path).shape == (2, 3, 64, 96)
    assert (probe(path).height, probe(path).width) == (64, 96)
    tall, wide = extent(read_video(path, size=(64, 64)))
    assert abs(tall - wide) <= 1


def test_a_rotated_video_comes_upright(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32] = 255  # top left
    path = square(tmp_path, picture)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    clockwise = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]  # x' = -y, y' = x: as phones file a portrait
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in clockwise)
    path.write_bytes(data)
    frame = read_video(path)[0]
    assert frame.shape == (3, 64, 32)
    assert frame[:, 4:28, 20:28].min() > 0.9  # top right now
    assert frame[:, 36:60].max() < -0.9
    assert frame[:, :, 4:12].max() < -0.9


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", None),
        ("fast.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mkv", "libx264", None),
        ("a.avi", "mpeg4", None),
        ("a.webm", "libvpx", None),
    ],
)
def test_a_truncated_file_is_named(film, name, codec, options, share):
    path = film(name, n=40, fps=10, codec=codec, options=options)
    assert probe(path).frames == 40
    cut(path, share)
    for read in (probe, read_video):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a video: .*truncated"):
            read(path)


def test_a_last_frame_cut_short_is_noticed(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving(), fps=8)
    path.write_bytes(path.read_bytes()[:-10])
    for read in (probe, read_video):
        with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video: .*a frame is cut off"):
            read(path)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all" * 50)
    for read in (probe, read_video):
        with pytest.raises(ValueError, match=r"empty\.mp4 is empty: 0 bytes"):
            read(tmp_path / "empty.mp4")
        with pytest.raises(ValueError, match=r"text\.mp4 cannot be read as a video"):
            read(tmp_path / "text.mp4")
        with pytest.raises(ValueError, match=r"gone\.mp4 is not a file"):
            read(tmp_path / "gone.mp4")


def test_files_without_frames_are_named(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    with av.open(str(tmp_path / "none.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.open()
        out.start_encoding()
    for read in (probe, read_video):
        with pytest.raises(ValueError, match=r"sound\.mp4 cannot be read as a video: it has no video stream"):
            read(tmp_path / "sound.mp4")
        with pytest.raises(ValueError, match=r"none\.avi cannot be read as a video: it has no frames"):
            read(tmp_path / "none.avi")


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"frames": 0}, {"size": (0, 32)}])
def test_senseless_requests(film, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*or more|^fps is 0"):
        read_video(film("a.mp4", n=2), **wrong)


@pytest.mark.parametrize(
    ("name", "codec", "fps"), [("a.mp4", "libx264", 24), ("a.avi", "mpeg4", 12), ("a.webm", "libvpx", 30)]
)
def test_probe(film, name, codec, fps):
    info = probe(film(name, n=24, fps=fps, codec=codec))
    assert (info.width, info.height, info.frames) == (48, 32, 24)
    assert info.fps == pytest.approx(fps, rel=0.01)
    assert info.duration == pytest.approx(24 / fps, rel=0.01)


def moving(height=96, width=128):
    ramp = torch.linspace(-0.9, 0.9, width).expand(6, 3, height, width).clone()
    return ramp * torch.tensor([1.0, -1.0, 0.5])[:, None, None] + torch.linspace(-0.1, 0.1, 6)[:, None, None, None]


@pytest.mark.parametrize("as_frames", [False, True])
def test_written_video_comes_back(tmp_path, as_frames):
    video = moving()
    write_video(tmp_path / "new" / "a.mp4", to_uint8(video) if as_frames else video, fps=8)
    back = read_video(tmp_path / "new" / "a.mp4", fps=8, frames=6)
    assert (back - video).abs().mean() < 0.02
    assert probe(tmp_path / "new" / "a.mp4").fps == pytest.approx(8)


def test_written_video_is_what_browsers_play(tmp_path):
    write_video(tmp_path / "a.mp4", moving(31, 33), fps=29.97, upscale=3)
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        frame = next(file.decode(stream))
        assert (stream.codec_context.name, frame.format.name) == ("h264", "yuv420p")
        assert (frame.height, frame.width) == (94, 100)  # 93 x 99, made even
        assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-3)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_colours_survive(tmp_path):
    colours = torch.tensor([[0.9, -0.8, -0.8], [-0.8, 0.9, -0.8], [-0.8, -0.8, 0.9], [0.5, 0.5, -0.9]])
    video = colours[:, :, None, None].expand(4, 3, 32, 32)
    write_video(tmp_path / "a.mp4", video, fps=8)
    assert (read_video(tmp_path / "a.mp4") - video).abs().max() < 0.03


def test_upscaling_keeps_pixels_square_and_sharp(tmp_path):
    video = torch.where(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, 0.8, -0.8)
    video = video.expand(2, 3, 8, 8)
    write_video(tmp_path / "a.mp4", video, fps=8, upscale=4)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == (2, 3, 32, 32)
    assert torch.equal(back[..., 1::4, 1::4] > 0, video > 0)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"expected float f 3 h w"):
        write_video(path, torch.zeros(3, 1, 8, 8), fps=8)
    with pytest.raises(ValueError, match=r"fps is 0; expected a rate above 0"):
        write_video(path, torch.zeros(3, 3, 8, 8), fps=0)
    with pytest.raises(av.FFmpegError):
        write_video(path, torch.zeros(1, 3, 1, 40000), fps=8)  # wider than H.264 can be
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_conversions_undo_each_other():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(2, 1, 16, 16, 3)
    video = to_float(frames)
    assert video.shape == (2, 1, 3, 16, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(to_uint8(video), frames)
    assert to_uint8(torch.full((3, 1, 1), 1.5)).max() == 255


def test_a_contact_sheet_has_room_for_large_videos():
    assert thumbnail(torch.zeros(81, 3, 480, 832)).shape == (14, 3, 160, 277)  # every sixth frame
    small = torch.rand(16, 3, 32, 32)
    assert torch.equal(thumbnail(small), small)


def test_contact_sheet_has_a_row_per_video(tmp_path):
    long, short = torch.ones(3, 3, 4, 6), torch.zeros(2, 3, 4, 6)
    contact_sheet([long, short], tmp_path / "sheet.png", upscale=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (4 + 1 + 4), 2 * (6 + 1 + 6 + 1 + 6), 3)
    assert (sheet[0, 0] == 255).all()
    assert (sheet[0, -1] == 255).all()
    assert (sheet[-1, 0] == 128).all()
    assert (sheet[-1, -1] == 0).all()
    with pytest.raises(ValueError, match="expected some of one size"):
        contact_sheet([long, torch.zeros(2, 3, 5, 6)], tmp_path / "sheet.png")


def still(path, colour, codec, pix_fmt, container=None, **context):
    """A video of four frames of one colour, RGB or RGBA; `context` is set on the encoder."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=LOSSLESS.get(codec, {}))
        stream.height = stream.width = 64
        stream.pix_fmt = pix_fmt
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        picture = np.full((64, 64, len(colour)), colour, np.uint8)
        colours = {"dst_colorspace": context.get("colorspace"), "dst_color_range": context.get("color_range")}
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if len(colour) == 4 else "rgb24")
            frame = frame.reformat(format=pix_fmt, **{name: value for name, value in colours.items() if value})
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


LOSSLESS = {
    "libx264": {"qp": "0"},
    "libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8"},
    "libvpx": {"crf": "4", "b": "1000000", "auto-alt-ref": "0"},
    "mpeg1video": {"qmax": "2"},
    "mpeg2video": {"qmax": "2"},
}

ORANGE = (200, 60, 40)


def seen(video):
    """The colour in the middle of the first frame."""
    return to_uint8(video)[0, 32, 32].tolist()


@pytest.mark.parametrize("matrix", [1, 6, 9])  # BT.709, BT.601, BT.2020
@pytest.mark.parametrize("full", [1, 2])  # limited, full range
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_matrix_and_range_are_the_files_own(tmp_path, matrix, full, pix_fmt):
    path = still(tmp_path / "a.mkv", ORANGE, "ffv1", pix_fmt, colorspace=matrix, color_range=full)
    assert seen(read_video(path)) == pytest.approx(ORANGE, abs=3)


ELEMENTARY = [
    ("a.mpg", "mpeg1video", "mpeg1video"),
    ("b.mpg", "mpeg2video", "mpeg2video"),
    ("a.m2v", "mpeg2video", "mpeg2video"),
    ("a.h264", "libx264", "h264"),
    ("a.264", "libx264", "h264"),
    ("picture.png", "libx264", "mp4"),
]


@pytest.mark.parametrize(("name", "codec", "container"), ELEMENTARY)
def test_a_clip_is_known_by_its_content(tmp_path, name, codec, container):
    path = still(tmp_path / name, ORANGE, codec, "yuv420p", container)
    assert probe(path).frames == 4
    assert seen(read_video(path)) == pytest.approx(ORANGE, abs=4)
    assert seen(read_frame(path, (64, 64))[None]) == pytest.approx(ORANGE, abs=4)


def test_an_elementary_stream_is_read_at_its_own_rate(film, numbers):
    path = film("a.h264", n=32, fps=16)
    assert numbers(read_video(path, fps=8)) == list(range(0, 32, 2))
    assert probe(path).fps == 16


TRANSPARENT = [
    ("a.webm", "libvpx-vp9", "yuva420p"),
    ("a.webm", "libvpx", "yuva420p"),
    ("a.mov", "prores_ks", "yuva444p10le"),
    ("b.mov", "qtrle", "argb"),
    ("a.mkv", "ffv1", "bgra"),
    ("a.png", "apng", "rgba"),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), TRANSPARENT)
def test_what_is_transparent_is_laid_over_black(tmp_path, name, codec, pix_fmt):
    path = still(tmp_path / name, (*ORANGE, 128), codec, pix_fmt, "apng" if codec == "apng" else None)
    assert seen(read_video(path)) == pytest.approx([100, 30, 20], abs=3)
    assert seen(read_frame(path, (64, 64))[None]) == pytest.approx([100, 30, 20], abs=3)
    assert len(read_video(path, fps=25)) == 4


def test_a_gifs_transparent_pixels_are_black(tmp_path):
    first = Image.new("P", (64, 64))
    first.putpalette([*ORANGE, 10, 20, 30])
    first.paste(1, (0, 0, 32, 64))
    first.save(tmp_path / "a.gif", transparency=0, save_all=True, append_images=[first.copy()])
    video = to_uint8(read_video(tmp_path / "a.gif"))
    assert (video[0, 32, 16].tolist(), video[0, 32, 48].tolist()) == ([10, 20, 30], [0, 0, 0])


@pytest.mark.parametrize(("code", "name"), [(16, "PQ, smpte2084"), (18, "HLG, arib-std-b67")])
@pytest.mark.parametrize(("file", "codec"), [("a.mkv", "ffv1"), ("a.mp4", "libx264")])
def test_hdr_is_refused_by_name_with_the_command_that_mends_it(tmp_path, code, name, file, codec):
    path = still(tmp_path / file, ORANGE, codec, "yuv420p", colorspace=9, color_primaries=9, color_trc=code)
    for read in (probe, read_video, lambda path: read_frame(path, (8, 8))):
        with pytest.raises(
            ValueError, match=rf"{file} cannot be read as a video: it is HDR \({name}\).*ffmpeg -i .*tone"
        ):
            read(path)


def test_hdr_that_only_the_container_tells_of(tmp_path):
    colours = {"colorspace": 9, "color_primaries": 9, "color_trc": 16}
    path = still(tmp_path / "a.mkv", ORANGE, "prores_ks", "yuv422p10le", **colours)
    with pytest.raises(ValueError, match=r"it is HDR \(PQ"):
        probe(path)


def test_wide_colours_alone_are_no_hdr(tmp_path):
    path = still(tmp_path / "a.mkv", ORANGE, "ffv1", "yuv420p10le", colorspace=9, color_primaries=9, color_trc=14)
    assert seen(read_video(path)) == pytest.approx(ORANGE, abs=3)


def test_a_picture_is_no_clip(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    write_video(tmp_path / "b.mp4", moving(), fps=8)
    (tmp_path / "a.heic").write_bytes((tmp_path / "b.mp4").read_bytes().replace(b"ftypisom", b"ftypheic"))
    for name, kind in (("a.png", "png"), ("a.mp4", "png"), ("a.heic", "heic")):
        for read in (probe, read_video):
            with pytest.raises(ValueError, match=rf"{name} cannot be read as a video: it is a picture \({kind}\)"):
                read(tmp_path / name)
