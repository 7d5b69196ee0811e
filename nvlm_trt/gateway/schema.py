"""Requests of OpenAI's API: what is taken, what is refused because it would be ignored, what may be ignored."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from nvlm_trt.client import Options
from nvlm_trt.decoder.request import MAX_PENALTY, MIN_PENALTY
from nvlm_trt.gateway.errors import ApiError

UNSUPPORTED: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that this server cannot honour, and the values (besides null) that ask for nothing."""

SEEDS: Final = 1 << 64

LEAST_NUCLEUS: Final = 1e-6
"""A `top_p` below it is met by the most likely token alone: of a million tokens one has as much. To the server 0, which
a 32-bit float makes of the smallest numbers too, is no `top_p`."""

Text = Annotated[StrictStr, Field(max_length=4 << 20)]
Whole = Annotated[StrictInt, Field(ge=1, lt=1 << 31)]
Number = StrictFloat | StrictInt


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Part):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(_Part):
    """Where an image is: a data URI, or http(s) where the operator lists the domain."""

    url: StrictStr


class ImagePart(_Part):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _form(value: object) -> str:
    return "list" if isinstance(value, list) else "one"


ONE_OR_LIST: Final = Discriminator(_form)
"""Tells a value from a list of some by its form, so that a mistake is told of the form that was meant."""


class Message(_Part):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("one")] | Annotated[list[Part], Field(max_length=1024), Tag("list")], ONE_OR_LIST
    ]


class StreamOptions(_Part):
    """What a stream holds besides the text."""

    include_usage: StrictBool = False


class _Asked(BaseModel):
    """What both endpoints take; every field that is not here is refused by name, as OpenAI does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: StrictStr
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = None
    temperature: Annotated[Number, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(1 << 63), lt=SEEDS)] | None = None
    stop: Annotated[
        Annotated[StrictStr | None, Tag("one")] | Annotated[list[StrictStr], Field(max_length=16), Tag("list")],
        ONE_OR_LIST,
    ] = None

    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None

    user: Any = Field(None, description="Ignored.")
    metadata: Any = Field(None, description="Ignored.")

    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = Field(None, description="Not OpenAI's.")
    min_tokens: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = Field(None, description="Not OpenAI's.")
    repetition_penalty: Annotated[Number, Field(ge=MIN_PENALTY, le=MAX_PENALTY, allow_inf_nan=False)] | None = Field(
        None, description="Not OpenAI's."
    )
    ignore_eos: StrictBool | None = Field(None, description="Not OpenAI's: answer with max_tokens tokens.")

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name in type(self).model_fields.keys() & UNSUPPORTED.keys():
            value = getattr(self, name)
            if value is not None and not any(value == one for one in UNSUPPORTED[name]):
                raise ValueError(f"{name} is not supported by this server")
        return self

    def limit(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens

    def options(self) -> Options:
        """How the answer is made.

        Raises:
            ApiError: 400, ignore_eos without a number of tokens.
        """
        limit, least = self.limit(), self.min_tokens
        if self.ignore_eos:
            if limit is None:
                raise ApiError(400, "ignore_eos needs a number of tokens", code="invalid_value", param="ignore_eos")
            least = limit
        best_alone = self.top_p is not None and self.top_p < LEAST_NUCLEUS
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Options(
            max_tokens=limit,
            min_tokens=least,
            temperature=self.temperature,
            top_k=1 if best_alone else self.top_k,
            top_p=None if best_alone else self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else self.seed % SEEDS,
            stop_words=stop,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Whole | None = None
    max_tiles: Whole | None = Field(None, description="Not OpenAI's: tiles that an image is cut into at most.")
    exif_orientation: StrictBool | None = Field(None, description="Not OpenAI's: turn images upright.")

    logprobs: StrictBool | None = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None

    parallel_tool_calls: Any = Field(None, description="Ignored.")
    store: Any = Field(None, description="Ignored.")
    service_tier: Any = Field(None, description="Ignored.")
    safety_identifier: Any = Field(None, description="Ignored.")
    prompt_cache_key: Any = Field(None, description="Ignored.")
    prompt_cache_retention: Any = Field(None, description="Ignored.")
    reasoning_effort: Any = Field(None, description="Ignored.")
    verbosity: Any = Field(None, description="Ignored.")

    def limit(self) -> int | None:
        """Tokens of the answer at most; the newer name goes first."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def options(self) -> Options:
        """How the answer is made."""
        options = super().options()
        return dataclasses.replace(
            options,
            max_tiles=self.max_tiles,
            exif_orientation=self.exif_orientation,
            return_log_probs=self.logprobs or None,
        )


class CompletionRequest(_Asked):
    """POST /v1/completions: one prompt, answered as a question without history."""

    prompt: Annotated[
        Annotated[Text, Tag("one")] | Annotated[list[Text], Field(min_length=1, max_length=1), Tag("list")],
        ONE_OR_LIST,
    ]

    logprobs: Annotated[StrictInt | StrictBool | None, Field(ge=0, le=0)] = Field(
        None, description="Not supported: ask the chat."
    )
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    def limit(self) -> int | None:
        """Tokens of the answer at most; 16 where none is named, as OpenAI documents."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]
