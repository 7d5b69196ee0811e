"""A batch against a real server: every answer is the one that the server gives when it is asked alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nvlm_trt.cli.main import main
from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.host.server import TritonServer


def test_a_batch_is_answered_like_its_requests_alone(
    server: TritonServer, client: NvlmClient, jpeg: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg("chelsea"))
    said = [{"role": role, "content": text} for role, text in (("user", "A"), ("assistant", "B"), ("user", "C"))]
    rows: dict[str, dict[str, object]] = {
        "text": {"prompt": "Why?"},
        "image": {"prompt": "What is it?", "images": ["cat.jpg"], "max_tiles": 2},
        "drawn": {"prompt": "Why?", "temperature": 1.0, "seed": 7},
        "turns": {"messages": said, "system_message": "Be brief."},
    }
    lines = [json.dumps({"id": key, **row, "max_tokens": 6}) for key, row in rows.items()]
    lines.append(json.dumps({"id": "long", "prompt": "Why?", "max_tokens": 100_000}))
    (tmp_path / "no.png").write_bytes(b"no image")
    lines.append(json.dumps({"id": "broken", "prompt": "Why?", "images": ["no.png"]}))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))

    assert main(["batch", str(source), str(output), "--url", server.grpc_url, "--quiet"]) == 1

    records = {record["id"]: record for record in map(json.loads, output.read_text().splitlines())}
    alone = {
        "text": client.generate("Why?", options=Options(max_tokens=6)),
        "image": client.generate(
            "What is it?", images=[tmp_path / "cat.jpg"], options=Options(max_tokens=6, max_tiles=2)
        ),
        "drawn": client.generate("Why?", options=Options(max_tokens=6, temperature=1.0, seed=7)),
        "turns": client.generate("C", history=[("A", "B")], system="Be brief.", options=Options(max_tokens=6)),
    }
    for key, answer in alone.items():
        record = records.pop(key)
        assert record.pop("seconds") > 0
        assert record == {
            "id": key,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "num_input_tokens": answer.num_input_tokens,
            "num_output_tokens": answer.num_output_tokens,
        }
    assert {key: record["error"]["kind"] for key, record in records.items()} == {
        "long": "RequestError",
        "broken": "RequestError",
    }
    assert "max_tokens is beyond the engine" in records["long"]["error"]["message"]
    assert {record["error"]["attempts"] for record in records.values()} == {1}
