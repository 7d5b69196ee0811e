"""Who may come in, by which key, how often; and keys that change while the server runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.keys import LOOK_SECONDS, Client, KeyFile, KeyRing
from nvlm_trt.gateway.settings import Limits

KEYS = ("first-key-of-this-test", "second-key-of-this-test", "third-key-of-this-test")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(key: str) -> bytes:
    return f"Bearer {key}".encode()


def is_taken(ring: KeyRing, key: str) -> bool:
    try:
        ring.check(shown(key))
    except ApiError:
        return False
    return True


@pytest.mark.parametrize("header", [None, b"", b"Bearer ", b"Bearer wrong", b"Basic " + KEYS[0].encode()])
def test_without_a_key_nobody_comes_in(header: bytes | None) -> None:
    with pytest.raises(ApiError) as refusal:
        KeyRing(KEYS, Limits()).check(header)
    assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")
    assert refusal.value.headers == {"WWW-Authenticate": "Bearer"}
    assert not any(key in refusal.value.sentence for key in KEYS)


def test_each_key_is_a_client_and_where_there_are_none_everybody_is_one() -> None:
    ring = KeyRing(KEYS, Limits())
    first, second = (ring.check(shown(key)) for key in KEYS[:2])
    assert first is not second
    assert ring.check(b"bearer  " + KEYS[1].encode()) is second
    open_ring = KeyRing((), Limits())
    assert open_ring.check(None) is open_ring.check(shown(KEYS[0]))


def test_logs_name_a_client_without_its_key() -> None:
    ring = KeyRing(KEYS, Limits())
    names = [ring.check(shown(key)).name for key in KEYS]
    assert len({*names}) == 3
    assert all(name is not None and len(name) == 8 and name not in "".join(KEYS) for name in names)
    assert KeyRing((), Limits()).check(None).name is None


def test_a_client_has_a_number_of_requests_at_once_of_its_own() -> None:
    limits = Limits(key_concurrent=1)
    client, other = (Client(name, limits, Clock()) for name in ("one", "other"))
    with client.request():
        with pytest.raises(ApiError) as refusal, client.request():
            pass
        assert (refusal.value.status, refusal.value.code) == (429, "concurrency_limit_exceeded")
        with other.request():
            pass
    with client.request():
        pass


def test_a_client_has_a_rate_of_its_own_and_is_told_when_to_come_back() -> None:
    clock, limits = Clock(), Limits(key_per_minute=2)
    client, other = (Client(name, limits, clock) for name in ("one", "other"))

    def ask(who: Client) -> None:
        with who.request():
            pass

    ask(client)
    ask(client)
    with pytest.raises(ApiError) as refusal:
        ask(client)
    assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "30"})
    ask(other)
    clock.now += 30
    ask(client)
    with pytest.raises(ApiError):
        ask(client)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text("\n".join(KEYS[:2]))
    return tmp_path / "keys"


@pytest.fixture
def ring(file: Path, clock: Clock) -> KeyRing:
    return KeyRing(KEYS[:2], Limits(key_concurrent=1), KeyFile(file, {}, clock), clock)


def replace(file: Path, text: str) -> None:
    """Another file in its place, as a careful editor does, and a mounted secret."""
    file.with_suffix(".new").write_text(text)
    os.replace(file.with_suffix(".new"), file)


def test_a_key_that_is_taken_away_is_refused_and_a_new_one_is_taken(ring: KeyRing, file: Path, clock: Clock) -> None:
    kept = ring.check(shown(KEYS[1]))  # looks at the file
    with kept.request():
        replace(file, "\n".join(KEYS[1:]))
        assert [is_taken(ring, key) for key in KEYS] == [True, True, False]  # it was looked at just now
        clock.now += LOOK_SECONDS
        assert [is_taken(ring, key) for key in KEYS] == [False, True, True]
        with pytest.raises(ApiError) as refusal, ring.check(shown(KEYS[1])).request():
            pass
        assert refusal.value.code == "concurrency_limit_exceeded"  # what a kept key has under way still counts


def test_keys_that_changed_before_the_first_client_came_are_seen(file: Path) -> None:
    replace(file, KEYS[2])
    ring = KeyRing(KEYS[:2], Limits(), KeyFile(file, {}))
    assert [is_taken(ring, key) for key in KEYS] == [False, False, True]


def test_a_file_that_could_not_be_read_for_a_moment_is_read_later(
    ring: KeyRing, file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(file, KEYS[2])
    with monkeypatch.context() as moment:
        moment.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError("too many open files")))
        assert [is_taken(ring, key) for key in KEYS] == [True, True, False]
    clock.now += LOOK_SECONDS
    assert [is_taken(ring, key) for key in KEYS] == [False, False, True]


@pytest.mark.parametrize("text", ["", "short\n", None])
def test_a_file_at_fault_changes_nothing_and_is_told_once(
    ring: KeyRing, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    if text is None:
        file.unlink()
    else:
        replace(file, text)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now += LOOK_SECONDS
            assert [is_taken(ring, key) for key in KEYS] == [True, True, False]
    assert [record.message for record in caplog.records] == ["the API keys were not changed"]
    replace(file, KEYS[2])
    clock.now += LOOK_SECONDS
    assert [is_taken(ring, key) for key in KEYS] == [False, False, True]
