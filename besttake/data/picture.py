"""Reading of pictures as 8-bit RGB, from any bit depth, colour mode or transparency.

- Orientation (EXIF) is applied; colour profiles (ICC) are not, as in diffusers' `load_image`.
- Transparent pictures are composited over black, like videos.
- 16 bits per channel are truncated to 8, like in FFmpeg; floating point is scaled from [0, 1].
- HDR (PQ, HLG) is rejected: its values do not match the brightness of the videos that models are trained on.
- Of an animation (GIF, WebP, PNG) the first picture is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

HDR = {16: "PQ, smpte2084", 18: "HLG, arib-std-b67"}
"""HDR transfer functions by their number in ITU-T H.273, used by videos, PNG and AVIF."""

HEAD = 1 << 16
"""Number of bytes searched for colour information."""


def read_picture(path: str | Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """Read a picture in upright orientation; None if the file's content is no picture.

    Raises:
        ValueError: the file is missing, damaged, HDR, in an ambiguous number format (signed or 32-bit integers,
            floating point outside [0, 1]), or larger than Pillow opens.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    try:
        Image.init()
        # Pillow's MPEG plugin is a stub that identifies elementary video streams but cannot load them
        with Image.open(path, formats=[name for name in Image.OPEN if name != "MPEG"]) as image:
            refuse_hdr(_transfer(path, image.format), "save it as sRGB")
            return _rgb(image)
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def refuse_hdr(transfer: int, advice: str) -> None:
    """ValueError, with `advice`, if the transfer function is HDR."""
    if transfer in HDR:
        raise ValueError(f"it is HDR ({HDR[transfer]}), which would look dull and grey; {advice}")


def over_black(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite a picture with (not premultiplied) alpha over black."""
    return ((rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255).astype(np.uint8)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    transparency = image.info.get("transparency")
    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":
        grey = _grey(upright, image)
        if transparency is not None:  # a PNG's transparent grey value
            grey = np.where(np.asarray(upright) == transparency, 0, grey).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if upright.has_transparency_data:
        return over_black(np.asarray(upright.convert("RGBA")))
    return np.asarray(upright.convert("RGB"))


def _grey(upright: Image.Image, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """8-bit values of Pillow's modes I and F, which its own conversion would clip to black and white."""
    values, bits, inverted = np.asarray(upright), 16, False
    if isinstance(image, TiffImageFile):
        bits, inverted = image.tag_v2[BITSPERSAMPLE][0], image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    if upright.mode == "F":
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 1:  # also false for NaN
            raise ValueError(f"its floating-point values go from {low:g} to {high:g}; expected [0, 1]: scale them")
        grey = (values * 255).round().astype(np.uint8)
    elif upright.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("it holds signed or 32-bit integers; save it with 8 or 16 bits a channel, without a sign")
    else:
        grey = (values >> (bits - 8)).astype(np.uint8)
    return 255 - grey if inverted else grey


def _transfer(path: str | Path, kind: str | None) -> int:
    """The number of the transfer function in a PNG (cICP) or AVIF (nclx); 2, unspecified, if there is none.

    Pillow does not read them.
    """
    mark, place = {"PNG": (b"cICP", 5), "AVIF": (b"colrnclx", 11)}.get(kind or "", (b"", 0))
    with Path(path).open("rb") as file:
        head = file.read(HEAD).partition(b"IDAT")[0]
    offset = head.find(mark) if mark else -1
    return head[offset + place] if 0 <= offset < len(head) - place else 2
