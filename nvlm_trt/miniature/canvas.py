"""A picture that knows what is drawn on it: where every character and every object is.

The list of marks is what the vision encoder is trained on, and what questions are made from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nvlm_trt.miniature.assets import Split, font, fonts, photographs

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (215, 40, 40),
    "green": (45, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (240, 205, 40),
    "purple": (135, 55, 175),
    "orange": (240, 130, 30),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
OBJECT_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
MIN_CONTRAST = 80
"""Difference of luma (0 to 255) between a colour and what lies under it, below which text is not drawn there."""
WARPED = 0.6
"""Share of the texts of training whose letters are bent: two dozen fonts are too few to read others by."""

Warp = tuple[tuple[float, float], tuple[float, float]]
"""Rows of the matrix that takes a pixel of a bent character to its place in the straight one."""
_SMOOTH = Image.Resampling.BILINEAR


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character: its middle, advance and capital height in pixels of the picture; its place in its text, from 0."""

    char: str
    x: float
    y: float
    advance: float
    height: float
    colour: str
    place: int


@dataclass(frozen=True, slots=True)
class Item:
    """An object: its centre and its radius, in pixels of the picture."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(slots=True)
class Canvas:
    """A picture under way.

    Attributes:
        image: RGB.
        columns: Tiles across of the grid that the picture is made for.
        rows: Tiles down.
        scale: Pixels of the picture to a pixel of a tile.
        split: Whose fonts and photographs are used.
    """

    image: Image.Image
    columns: int
    rows: int
    scale: float
    split: Split
    glyphs: list[Glyph] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def shape(self, shape: str, colour: str, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
        """Draw an object."""
        draw = ImageDraw.Draw(self.image)
        fill = jittered(COLOURS[colour], 10, rng)
        points = _outline(shape, x, y, radius)
        outline = (
            (30, 30, 30) if sum(abs(a - b) for a, b in zip(fill, self.under(x, y, radius), strict=True)) < 150 else None
        )
        if shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline)
        else:
            draw.polygon(points, fill=fill, outline=outline)
        self.items.append(Item(shape, colour, x, y, radius))

    def bar(self, colour: str, box: tuple[float, float, float, float], rng: np.random.Generator) -> None:
        """Draw a bar of a chart: (left, top, right, bottom)."""
        ImageDraw.Draw(self.image).rectangle(box, fill=jittered(COLOURS[colour], 10, rng))
        left, top, right, bottom = box
        self.items.append(Item("bar", colour, (left + right) / 2, (top + bottom) / 2, (right - left) / 2))

    def typeface(self, height: float, rng: np.random.Generator) -> ImageFont.FreeTypeFont:
        """One of the split's fonts, at a size at which its capitals are about `height` pixels high."""
        files = fonts(self.split)
        return font(files[rng.integers(len(files))], max(4, round(height / 0.72)))

    def text(
        self,
        text: str,
        x: float,
        y: float,
        height: float,
        colour: str,
        rng: np.random.Generator,
        *,
        face: ImageFont.FreeTypeFont | None = None,
        pitch: float = 0,
    ) -> None:
        """Draw text centred at (x, y).

        Args:
            text: Letters, digits and spaces.
            x: Centre.
            y: Middle of the capitals.
            height: Of a capital, in pixels.
            colour: A name of COLOURS.
            rng: Chooses the font and the shade.
            face: The font, where it is chosen already.
            pitch: Least advance of a character in pixels.
        """
        face = face or self.typeface(height, rng)
        advances = advances_of(text, face, pitch)
        left = x - sum(advances) / 2
        draw = ImageDraw.Draw(self.image)
        fill = jittered(COLOURS[colour], 10, rng)
        warp = _warp(rng) if self.split == "train" and rng.random() < WARPED else None
        for place, (char, advance) in enumerate(zip(text, advances, strict=True)):
            centre = left + advance / 2
            if warp:
                self._warped(char, centre, y, height, face, fill, warp)
            else:
                draw.text((centre, y + height / 2), char, fill=fill, font=face, anchor="ms")
            if char != " ":
                self.glyphs.append(Glyph(char, centre, y, advance, height, colour, place))
            left += advance

    def _warped(
        self, char: str, x: float, y: float, height: float, face: ImageFont.FreeTypeFont, fill: Rgb, warp: Warp
    ) -> None:
        """Draw a character bent about its middle."""
        half = int(face.size) + 2
        left, top = math.floor(x) - half, math.floor(y) - half
        middle = x - left, y - top
        mask = Image.new("L", (2 * half, 2 * half))
        ImageDraw.Draw(mask).text((middle[0], middle[1] + height / 2), char, fill=255, font=face, anchor="ms")
        (a, b), (c, d) = warp
        from_there = (a, b, middle[0] - a * middle[0] - b * middle[1], c, d, middle[1] - c * middle[0] - d * middle[1])
        self.image.paste(fill, (left, top), mask.transform(mask.size, Image.Transform.AFFINE, from_there, _SMOOTH))

    def plate(self, box: tuple[float, float, float, float], rng: np.random.Generator) -> None:
        """Draw an empty sign for text."""
        dark = bool(rng.integers(2))
        fill = jittered((40, 40, 50) if dark else (235, 232, 225), 25, rng)
        ImageDraw.Draw(self.image).rounded_rectangle(box, radius=min(box[2] - box[0], box[3] - box[1]) / 6, fill=fill)

    def under(self, x: float, y: float, radius: float) -> Rgb:
        """Mean colour around a place; of the nearest place inside, if it lies beyond the border."""
        width, height = self.size
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        box = (
            max(0, int(x - radius)),
            max(0, int(y - radius)),
            min(width, int(x + radius) + 1),
            min(height, int(y + radius) + 1),
        )
        red, green, blue = np.asarray(self.image.crop(box)).reshape(-1, 3).mean(axis=0)
        return int(red), int(green), int(blue)

    def readable(self, x: float, y: float, radius: float, rng: np.random.Generator, names: tuple[str, ...]) -> str:
        """One of the colours that stand out at a place."""
        base = self.under(x, y, radius)
        contrast = {name: abs(luma(COLOURS[name]) - luma(base)) for name in names}
        good = [name for name in names if contrast[name] > MIN_CONTRAST]
        return str(rng.choice(good or [max(names, key=contrast.__getitem__)]))


def blank(columns: int, rows: int, tile: int, split: Split, rng: np.random.Generator, *, busy: bool = True) -> Canvas:
    """A background for a grid of `columns` x `rows` tiles of `tile` pixels: plain, a gradient, noise, or a photograph.

    Args:
        columns: Tiles across.
        rows: Tiles down.
        tile: Side of a tile in pixels.
        split: Whose photographs are used.
        rng: Chooses everything.
        busy: Whether photographs may be used.
    """
    scale = float(rng.uniform(1.0, 1.35))
    width, height = round(columns * tile * scale), round(rows * tile * scale)
    if columns == rows == 1:
        width = height = min(width, int(tile * 1.4))
    else:  # the aspect ratio must stay exact: the grid is chosen by it
        unit = round(tile * scale)
        width, height = columns * unit, rows * unit
    kind = rng.choice(
        ["plain", "gradient", "noise", "photograph"], p=[0.4, 0.2, 0.1, 0.3] if busy else [0.6, 0.3, 0.1, 0]
    )
    base = np.array(_backdrop(rng), dtype=np.float64)
    if kind == "photograph":
        pictures = photographs(split)
        image = _crop(pictures[rng.integers(len(pictures))], width, height, rng)
    elif kind == "gradient":
        other = np.clip(base + rng.uniform(-60, 60, 3), 0, 255)
        across = np.linspace(0, 1, width)[None, :, None] * rng.uniform(-1, 1) + np.linspace(0, 1, height)[:, None, None]
        image = Image.fromarray((base + (other - base) * np.clip(across, 0, 1)).astype(np.uint8))
    elif kind == "noise":
        noise = rng.normal(0, rng.uniform(3, 14), (height, width, 1))
        image = Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))
    else:
        image = Image.new("RGB", (width, height), tuple(int(value) for value in base))
    return Canvas(image, columns, rows, width / (columns * tile), split)


def advances_of(text: str, face: ImageFont.FreeTypeFont, pitch: float) -> list[float]:
    """Width of every character in pixels, at least `pitch`."""
    return [max(face.getlength(char), pitch) for char in text]


def _warp(rng: np.random.Generator) -> Warp:
    """Wider or narrower, taller or lower, leaning and turned a little."""
    across, down = 1 / rng.uniform(0.8, 1.15), 1 / rng.uniform(0.9, 1.1)
    lean, turn = rng.uniform(-0.25, 0.25), rng.uniform(-0.12, 0.12)
    cos, sin = math.cos(turn), math.sin(turn)
    return (across * (cos + lean * sin), across * (lean * cos - sin)), (down * sin, down * cos)


def luma(colour: Rgb) -> float:
    """Brightness as the eye sees it (ITU-R BT.601), 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def jittered(colour: Rgb, amount: int, rng: np.random.Generator) -> Rgb:
    """A colour near another."""
    red, green, blue = (int(np.clip(value + rng.integers(-amount, amount + 1), 0, 255)) for value in colour)
    return red, green, blue


def _backdrop(rng: np.random.Generator) -> tuple[float, ...]:
    level = rng.choice([rng.uniform(0, 50), rng.uniform(95, 150), rng.uniform(190, 255)], p=[0.25, 0.15, 0.6])
    return tuple(np.clip(level + rng.uniform(-18, 18, 3), 0, 255))


def _crop(picture: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A part of a photograph, paler or darker, sometimes blurred, so that what is drawn on it can be seen."""
    side = rng.uniform(0.4, 1.0)
    ratio = width / height
    crop_width = min(picture.width, picture.height * ratio) * side
    crop_height = crop_width / ratio
    left, top = rng.uniform(0, picture.width - crop_width), rng.uniform(0, picture.height - crop_height)
    image = picture.resize((width, height), box=(left, top, left + crop_width, top + crop_height))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    veil = Image.new("RGB", image.size, (250, 250, 250) if rng.random() < 0.6 else (10, 10, 10))
    return Image.blend(image, veil, rng.uniform(0.2, 0.6))


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape; a circle has none."""
    if shape == "square":
        side = radius * 0.86
        return [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    if shape == "triangle":
        return _ring(x, y + radius * 0.15, [radius * 1.1], 3)
    if shape == "diamond":
        return [(x, y - radius * 1.1), (x + radius * 0.75, y), (x, y + radius * 1.1), (x - radius * 0.75, y)]
    if shape == "star":
        return _ring(x, y, [radius * 1.15, radius * 0.45], 10)
    if shape == "cross":
        arm = radius * 0.36
        ends = [(-arm, -radius), (arm, -radius), (arm, -arm), (radius, -arm), (radius, arm), (arm, arm)]
        ends += [(arm, radius), (-arm, radius), (-arm, arm), (-radius, arm), (-radius, -arm), (-arm, -arm)]
        return [(x + dx, y + dy) for dx, dy in ends]
    return []


def _ring(x: float, y: float, radii: list[float], count: int) -> list[tuple[float, float]]:
    """Points around a centre, the first one above it, at radii in turn."""
    points = []
    for index in range(count):
        angle, radius = 2 * math.pi * index / count - math.pi / 2, radii[index % len(radii)]
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points
