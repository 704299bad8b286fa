"""Captioned contact sheets: small images with boxes, masks and captions as one picture, to be looked at by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ((230, 50, 50), (40, 120, 240), (20, 160, 80), (240, 160, 0))


def contact_sheet(images: Sequence[np.ndarray], boxes: Sequence | None = None, captions: Sequence[str] | None = None,
                  columns: int = 10, scale: int = 2, masks: Sequence | None = None) -> np.ndarray:
    """One uint8 RGB picture of `images` ((H, W, 3) uint8, all of one size), row by row.

    boxes: for each image None, one xyxy box in its pixels, or a list of boxes; captions: cut to the cell's width;
    masks: for each image None or (H, W) bool, drawn as a tint.
    """
    images = list(images)
    if not images or len({i.shape for i in images}) != 1:
        sizes = len({i.shape for i in images})
        raise ValueError(f"a contact sheet wants images of one size, got {len(images)} of {sizes} sizes")
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    bar = 12 if captions is not None else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + bar + 4) + 4), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for n, image in enumerate(images):
        x, y = 4 + n % columns * (width + 4), 4 + n // columns * (height + bar + 4)
        if masks is not None and masks[n] is not None:
            image = np.where(masks[n][..., None], image // 2 + np.array([110, 0, 60], np.uint8), image)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        for k, box in enumerate(_boxes(None if boxes is None else boxes[n])):
            x0, y0, x1, y1 = (float(v) * scale for v in box)
            corners = (x + x0, y + y0, x + max(x1 - 1, x0), y + max(y1 - 1, y0))
            draw.rectangle(corners, outline=COLOURS[k % len(COLOURS)])
        if captions is not None:
            draw.text((x, y + height), _cut(str(captions[n]), font, width), fill="black", font=font)
    return np.asarray(sheet)


def _boxes(boxes) -> Sequence:
    if boxes is None or len(boxes) == 0:
        return ()
    return (boxes,) if np.ndim(boxes) == 1 else boxes


def _cut(text: str, font, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
