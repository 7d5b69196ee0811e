"""A typed client of a served NVLM-D, over tritonclient: sync and asyncio."""

from __future__ import annotations

from nvlm_trt.client.aio import AsyncAnswerStream, AsyncNvlmClient
from nvlm_trt.client.request import Image, Options
from nvlm_trt.client.response import Answer
from nvlm_trt.client.sync import AnswerStream, NvlmClient

__all__ = ["Answer", "AnswerStream", "AsyncAnswerStream", "AsyncNvlmClient", "Image", "NvlmClient", "Options"]
