"""From OpenAI's messages to the model's: turns, and a place in the text for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.schema import ImagePart, Message, TextPart
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER, Turn

SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked.

    Attributes:
        question: The last message of the user.
        history: Earlier questions with their answers.
        system: What the system says; None for the model's own.
        images: URLs, in the order of the places in the texts.
    """

    question: str
    history: tuple[Turn, ...]
    system: str | None
    images: tuple[str, ...]


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """Read messages.

    Messages of one role that follow each other are one turn.

    Raises:
        ApiError: 400, a message that the model cannot be given, by its number.
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    images: list[str] = []
    has_images = any(isinstance(part, ImagePart) for message in messages for part in _parts(message))
    for place, message in enumerate(messages):
        role = "system" if message.role in SYSTEM else message.role
        text, urls = _text(message, place, guard=has_images)
        if urls and role != "user":
            raise _refusal(place, "only messages of the user hold images")
        images += urls
        if role == "system":
            if turns:
                raise _refusal(place, "what the system says stands before all other messages")
            system.append(text)
        elif turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n{text}")
        else:
            turns.append((role, text))
    if not turns or turns[0][0] != "user":
        raise _refusal(len(system), "a conversation begins with a message of the user")
    if turns[-1][0] != "user":
        raise _refusal(len(messages) - 1, "the last message is the user's")
    said = [text for _, text in turns]
    history = tuple(zip(said[:-1:2], said[1:-1:2], strict=True))
    return Conversation(said[-1], history, "\n".join(system) if system else None, tuple(images))


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    return [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content


def _text(message: Message, place: int, *, guard: bool) -> tuple[str, list[str]]:
    """The text of a message with the places of its images, and their URLs.

    A client may name the places itself, by ``<image>`` in the text. Otherwise images among texts keep their places;
    with one text they stand before it, as in the released ``chat()``, wherever the client put them.
    """
    parts = _parts(message)
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    named = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if named and guard and named != len(urls):
        raise _refusal(place, f"its text names {named} places with {IMAGE_PLACEHOLDER} and it holds {len(urls)} images")
    if named or not urls:
        return "\n".join(texts), urls
    if len(texts) <= 1:
        return "\n".join([*[IMAGE_PLACEHOLDER] * len(urls), *texts]), urls
    return "\n".join(part.text if isinstance(part, TextPart) else IMAGE_PLACEHOLDER for part in parts), urls


def _refusal(place: int, why: str) -> ApiError:
    return ApiError(400, f"message {place} cannot be used: {why}", code="invalid_value", param=f"messages[{place}]")
