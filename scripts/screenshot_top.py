"""`nvlm-trt top` on a server with work to do, as a picture: docs/screenshots/top.svg, and top.png where Chromium is.

``python scripts/screenshot_top.py ENGINE_DIR [--seconds 20]``
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import openai
import skimage.data
from PIL import Image
from rich.console import Console

from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.top.figures import Figures
from nvlm_trt.top.source import metrics_url, read_page
from nvlm_trt.top.view import page
from nvlm_trt.top.window import Window

OUT = Path(__file__).parents[1] / "docs" / "screenshots"
COLUMNS, CLIENTS = 110, 6
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""rich takes a font from the web; a picture in the docs asks nobody for anything."""


def main() -> None:
    """Serve, ask, look, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    with TritonServer(asked.engine_dir, ports=Ports(0, 0, 0)) as server:
        figures = asyncio.run(_watch(server, asked.seconds))
    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    console.print(page("127.0.0.1:8000", figures))
    OUT.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title=f"nvlm-trt top, {CLIENTS} clients")
    (OUT / "top.svg").write_text(WEB_FONT.sub("", svg).replace("Fira Code", "DejaVu Sans Mono"))
    if chromium := shutil.which("chromium"):
        width, height = (round(float(size)) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
        flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}")
        picture = f"--screenshot={OUT / 'top.png'}"
        subprocess.run([chromium, *flags, picture, (OUT / "top.svg").as_uri()], check=True, capture_output=True)


async def _watch(server: TritonServer, seconds: float) -> Figures:
    window, url, ends = Window(seconds), metrics_url(server.http_url), time.monotonic() + seconds
    clients = [asyncio.create_task(_ask(server, number)) for number in range(CLIENTS)]
    while time.monotonic() < ends:
        window.add(await asyncio.to_thread(read_page, url))
        await asyncio.sleep(1)
    for one in clients:
        one.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return Figures.of(window)


async def _ask(server: TritonServer, number: int) -> None:
    """Streams through the gateway, of photographs and of words; now and then one that is refused."""
    random_ = random.Random(number)
    async with openai.AsyncOpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0) as ask:
        while True:
            parts: list[dict[str, object]] = [{"type": "text", "text": "What is it?"}]
            if random_.random() < 0.6:
                parts.insert(0, {"type": "image_url", "image_url": {"url": _photograph(random_)}})
            too_long = random_.random() < 0.05
            try:
                stream = await ask.chat.completions.create(
                    model="nvlm",
                    messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
                    max_tokens=10**6 if too_long else random_.randint(8, 48),
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                async for _ in stream:
                    continue
            except openai.APIStatusError:
                continue


def _photograph(random_: random.Random) -> str:
    picture = Image.fromarray(random_.choice([skimage.data.coffee, skimage.data.astronaut, skimage.data.chelsea])())
    left = random_.choice((0, 0, random_.randint(0, 64)))
    file = io.BytesIO()
    picture.crop((left, 0, picture.width, picture.height)).save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
