"""Fonts, words and photographs of the splits: what the sealed test shows has not been seen in training.

Fonts come from packages (extra ``mini``), photographs are those of the calibration set; `docs/dependencies.md` names
their licences.
"""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFont

from nvlm_trt.errors import UserError, installing

Split = Literal["train", "validation", "test"]

MATPLOTLIB = "matplotlib/mpl-data/fonts/ttf"
_COMMON = (
    *(
        f"{MATPLOTLIB}/DejaVuS{name}.ttf"
        for name in ("ans", "ans-Bold", "ansMono", "ansMono-Bold", "erif", "erif-Bold")
    ),
    f"{MATPLOTLIB}/DejaVuSans-Oblique.ttf",
    f"{MATPLOTLIB}/STIXGeneralBol.ttf",
    *(f"font_roboto/files/Roboto-{name}.ttf" for name in ("Regular", "Medium", "Bold", "Black", "BoldItalic")),
    *(f"font_source_sans_pro/files/SourceSansPro-{name}.ttf" for name in ("Regular", "Semibold", "Bold")),
    *(f"font_source_serif_pro/files/SourceSerifPro-{name}.ttf" for name in ("Regular", "Semibold", "Bold")),
    *(f"font_hanken_grotesk/files/HankenGrotesk-{name}.otf" for name in ("Regular", "SemiBold", "Bold")),
    "font_fredoka_one/files/FredokaOne-Regular.ttf",
)
FONT_FILES: dict[Split, tuple[str, ...]] = {
    "train": (
        *_COMMON,
        *(f"{MATPLOTLIB}/{name}.ttf" for name in ("STIXGeneral", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10")),
        *(f"{MATPLOTLIB}/{name}.ttf" for name in ("cmtt10", "DejaVuSerif-BoldItalic", "DejaVuSansMono-Oblique")),
    ),
    "validation": _COMMON,
    "test": (
        *(f"font_manrope/files/Manrope-{name}.ttf" for name in ("Medium", "SemiBold", "Bold")),
        *(f"font_caladea/files/Caladea-{name}.ttf" for name in ("Regular", "Bold")),
    ),
}
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": ("astronaut.jpg", "cat.jpg", "galaxies.jpg", "retina.jpg"),
    "test": ("coffee.jpg", "photographer.jpg", "rocket.jpg"),
}
TEST_SHARE = 5
"""One word of so many is kept for the test."""


def fonts(split: Split) -> tuple[Path, ...]:
    """The font files of a split; those of validation are some of training's.

    Raises:
        UserError: a package of fonts is not installed.
    """
    home = Path(sysconfig.get_path("purelib"))
    files = tuple(home / name for name in FONT_FILES[split])
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            "fonts of the miniature's pictures are missing",
            seen=f"no {missing[0]}",
            fix=installing("mini"),
        )
    return files


@cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(path, size)


@cache
def photographs(split: Split) -> tuple[Image.Image, ...]:
    """The photographs of a split, RGB."""
    folder = resources.files("nvlm_trt.calibration") / "data" / "images"
    images = []
    for name in PHOTOGRAPHS[_source(split)]:
        with (folder / name).open("rb") as file:
            images.append(Image.open(file).convert("RGB"))
    return tuple(images)


@cache
def words(split: Split) -> tuple[str, ...]:
    """The words of a split, in capitals."""
    text = (resources.files("nvlm_trt.miniature") / "data" / "words.txt").read_text(encoding="utf-8")
    sealed = _source(split) == "test"
    return tuple(word.upper() for word in text.split() if _is_sealed(word) == sealed)


def _is_sealed(word: str) -> bool:
    return hashlib.sha256(word.encode()).digest()[0] % TEST_SHARE == 0


def _source(split: Split) -> str:
    return "test" if split == "test" else "train"
