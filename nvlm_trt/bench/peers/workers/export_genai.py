"""Convert a decoder for OpenVINO GenAI, by optimum-intel: ``export_genai.py CHECKPOINT bf16|int8 OUT``."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json")
FORMATS = {"bf16": "fp16", "int8": "int8"}
"""How the file keeps weights; for bf16 the CPU plugin rounds them to what it computes in when it loads them."""


def main() -> int:
    """Write the folder OUT in one piece."""
    checkpoint, precision, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        source, made = Path(scratch, "qwen2"), Path(scratch, "ir")
        importlib.import_module("qwen2").open_qwen2(checkpoint).save_pretrained(source)
        for name in TOKENIZER:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, source / name)
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(source)]
        command += ["--task", "text-generation-with-past", "--weight-format", FORMATS[precision], str(made)]
        subprocess.run(command, check=True)
        os.replace(made, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
