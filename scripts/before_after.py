"""The README's animation: clips of a finished run before and after training, side by side, as an animated WebP.

    python scripts/before_after.py runs/demo docs/assets/before_after.webp

Prompts are taken in their order, whatever they show; --start skips some. Every clip comes from the same noise in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from besttake.data.video import probe, read_video, to_uint8
from besttake.report.folder import read_run

CELL, GAP, HEAD, LIMIT = 96, 6, 22, 2_000_000
WHITE, BLACK = (255, 255, 255), (30, 30, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with evaluation/before and evaluation/after")
    parser.add_argument("out", type=Path, help="the .webp to write")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--start", type=int, default=0, help="number of the first prompt")
    args = parser.parse_args()
    clips = read_run(args.run).clips
    numbers = sorted(set(clips["before"]) & set(clips["after"]))[args.start :][: args.columns * args.rows]
    if len(numbers) < args.columns * args.rows:
        raise SystemExit(f"{args.run} has {len(numbers)} prompts with clips before and after; expected more")
    halves = [panel([clips[side][n] for n in numbers], args.columns, side) for side in ("before", "after")]
    pages = [beside(*page) for page in zip(*halves, strict=True)]
    rate = probe(clips["before"][numbers[0]]).fps
    args.out.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = pages
    first.save(args.out, save_all=True, append_images=rest, duration=round(1000 / rate), loop=0, quality=80, method=6)
    size = args.out.stat().st_size
    print(f"{args.out}: {len(pages)} frames, {first.width} x {first.height}, {size / 1000:.0f} kB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:g} MB; give fewer --rows")


def panel(files: list[Path], columns: int, title: str) -> list[Image.Image]:
    """A picture for each frame: all clips in a grid, under a title."""
    videos = [to_uint8(read_video(file)).numpy() for file in files]
    rows, pages = -(-len(files) // columns), []
    for frame in range(min(map(len, videos))):
        page = Image.new("RGB", (columns * (CELL + GAP) - GAP, HEAD + rows * (CELL + GAP) - GAP), WHITE)
        draw = ImageDraw.Draw(page)
        draw.text((page.width / 2, HEAD / 2), title, BLACK, ImageFont.load_default(15), anchor="mm")
        for place, video in enumerate(videos):
            row, column = divmod(place, columns)
            clip = Image.fromarray(video[frame]).resize((CELL, CELL), Image.Resampling.LANCZOS)
            page.paste(clip, (column * (CELL + GAP), HEAD + row * (CELL + GAP)))
        pages.append(page)
    return pages


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures on one page."""
    page = Image.new("RGB", (left.width + right.width + 4 * GAP, left.height), WHITE)
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 4 * GAP, 0))
    return page


if __name__ == "__main__":
    main()
