"""Pictures as 8-bit RGB, whatever bits, colours or transparency their files hold.

- Orientation (EXIF) is applied; colour profiles (ICC) are not, as in diffusers' `load_image`.
- What is transparent is laid over black, here and in videos alike.
- 16 bits a channel become 8 by dropping the lower ones, as FFmpeg does; floating point is scaled from [0, 1].
- HDR (PQ, HLG) is refused: its values mean other brightnesses than those of the videos that models have learned from.
- Of an animation (GIF, WebP, PNG) it is the first picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

HDR = {16: "PQ, smpte2084", 18: "HLG, arib-std-b67"}
"""Transfer functions of HDR under their numbers in ITU-T H.273, which videos, PNG and AVIF share."""

HEAD = 1 << 16
"""Bytes of a file in which its colours are told."""


def read_picture(path: str | Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """A picture, upright; None if the file is no picture by its content, whatever its name.

    Raises:
        ValueError: the file is missing, damaged, HDR, of numbers that have no one reading as brightness (signed or
            32-bit integers, floating point outside [0, 1]), or larger than Pillow opens.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    try:
        Image.init()
        # Pillow's MPEG is a stub that knows an elementary video stream, and cannot load it
        with Image.open(path, formats=[name for name in Image.OPEN if name != "MPEG"]) as image:
            refuse_hdr(_transfer(path, image.format), "save it as sRGB")
            return _rgb(image)
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def refuse_hdr(transfer: int, advice: str) -> None:
    """Raises ValueError, with some advice, if the number of a transfer function is one of HDR's."""
    if transfer in HDR:
        raise ValueError(f"it is HDR ({HDR[transfer]}), which would come out dull and grey; {advice}")


def over_black(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture with an alpha channel (not premultiplied) as it looks over black."""
    return ((rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255).astype(np.uint8)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    transparency = image.info.get("transparency")
    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":
        grey = _grey(upright, image)
        if transparency is not None:  # the one value of a PNG that is not to be seen
            grey = np.where(np.asarray(upright) == transparency, 0, grey).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if upright.has_transparency_data:
        return over_black(np.asarray(upright.convert("RGBA")))
    return np.asarray(upright.convert("RGB"))


def _grey(upright: Image.Image, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """The 8 bits of greys that Pillow holds in more (modes I and F); its own conversion makes them white or black."""
    values, bits, inverted = np.asarray(upright), 16, False
    if isinstance(image, TiffImageFile):
        bits, inverted = image.tag_v2[BITSPERSAMPLE][0], image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    if upright.mode == "F":
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 1:  # nor if one is NaN
            raise ValueError(f"its floating-point values go from {low:g} to {high:g}; expected [0, 1]: scale them")
        grey = (values * 255).round().astype(np.uint8)
    elif upright.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("it holds signed or 32-bit integers; save it with 8 or 16 bits a channel, without a sign")
    else:
        grey = (values >> (bits - 8)).astype(np.uint8)
    return 255 - grey if inverted else grey


def _transfer(path: str | Path, kind: str | None) -> int:
    """The number of the transfer function that a PNG (cICP) or an AVIF (nclx) tells of; 2, unspecified, if none does.

    Pillow passes them over.
    """
    mark, place = {"PNG": (b"cICP", 5), "AVIF": (b"colrnclx", 11)}.get(kind or "", (b"", 0))
    with Path(path).open("rb") as file:
        head = file.read(HEAD).partition(b"IDAT")[0]
    found = head.find(mark) if mark else -1
    return head[found + place] if 0 <= found < len(head) - place else 2
