"""Pictures from anywhere, as a person sees them: RGB, upright, eight bits; or one line that says why not."""

from __future__ import annotations

import typing
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 150_000_000  # half a gigabyte in RGB
Source = typing.Union[str, Path, typing.BinaryIO, Image.Image, np.ndarray]


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


def open_image(source: Source, name: str | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of a file (or an open one), a PIL image or an array (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits.

    Grey becomes RGB, sixteen bits eight, transparency white, and an EXIF rotation is carried out. Raises ImageError, with
    `name` (default: the file), for anything that is missing, torn, empty or larger than MAX_PIXELS.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we look at the size ourselves
            image = _from_array(source) if isinstance(source, np.ndarray) else source
            image = image if isinstance(image, Image.Image) else Image.open(image)
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels; at most {MAX_PIXELS // 1_000_000} million fit")
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError as error:
        raise ImageError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{name}: image not found") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS // 1_000_000} million pixels") from None
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError) as error:
        raise ImageError(f"{name}: not a readable image ({error})") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"expected (H, W), (H, W, 3) or (H, W, 4), found {array.shape}")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"expected uint8 or uint16, found {array.dtype}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # sixteen bits of grey
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return np.asarray(image.convert("RGB"))
