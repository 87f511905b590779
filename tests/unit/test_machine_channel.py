"""The host side of the channel, against frames as a guest sends them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.machine import channel as ch

HEADER = struct.Struct("<IIc")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ch.Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = ch.Channel(ours, tmp_path)
    yield channel, theirs
    theirs.close()
    channel.close()


def frame(number: int, kind: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), number, kind) + payload


def test_output_and_events_are_sorted_by_channel(pair: tuple[ch.Channel, socket.socket]) -> None:
    channel, guest = pair
    (one, first), (two, second) = channel.open(), channel.open()
    guest.sendall(frame(one, ch.STDOUT, b"a") + frame(two, ch.STDERR, b"b") + frame(one, ch.STDOUT, b"c"))
    guest.sendall(frame(one, ch.EXIT, b"0") + frame(two, ch.EXIT, b"9") + frame(77, ch.EXIT, b"1"))
    assert first.events.get(timeout=5) == (ch.EXIT, b"0")
    assert second.events.get(timeout=5) == (ch.EXIT, b"9")
    first.stdout.seek(0)
    second.stderr.seek(0)
    assert (first.stdout.read(), second.stderr.read()) == (b"ac", b"b")


def test_frames_may_come_in_any_pieces(pair: tuple[ch.Channel, socket.socket]) -> None:
    channel, guest = pair
    number, stream = channel.open()
    for byte in frame(0, ch.HELLO, b"1") + frame(number, ch.STDOUT, b"xyz") + frame(number, ch.STATUS, b"0"):
        guest.sendall(bytes([byte]))
    assert stream.events.get(timeout=5) == (ch.STATUS, b"0")
    assert channel.hello.is_set()
    assert channel.version == 1


def test_a_guest_that_has_gone_elsewhere(pair: tuple[ch.Channel, socket.socket], tmp_path: Path) -> None:
    """What commands of the old channel still say there is nobody's answer here."""
    channel, guest = pair
    guest.sendall(frame(0, ch.HELLO, b"1"))
    assert channel.hello.wait(5)
    before = channel.open()[0]
    ours, there = socket.socketpair()
    other = ch.Channel(ours, tmp_path)
    other.go_on(channel)
    assert other.hello.is_set()
    assert other.version == 1
    number, stream = other.open()
    assert number > before
    there.sendall(frame(before, ch.EXIT, b"7") + frame(number, ch.EXIT, b"0"))
    assert stream.events.get(timeout=5) == (ch.EXIT, b"0")
    there.close()
    other.close()


@pytest.mark.parametrize("cut", [3, 9, 11])
def test_a_guest_that_goes_in_the_middle_of_a_frame(pair: tuple[ch.Channel, socket.socket], cut: int) -> None:
    channel, guest = pair
    number, stream = channel.open()
    guest.sendall(frame(number, ch.STDOUT, b"xyz")[:cut])
    guest.close()
    assert stream.events.get(timeout=5) == (b"", b"")
    assert channel.closed.is_set()
    late = channel.open()[1]
    assert late.events.get(timeout=5) == (b"", b"")
    with pytest.raises(ch.ChannelClosedError):
        for _ in range(3):
            channel.send(number, ch.KILL, b"9")
            time.sleep(0.01)


def test_a_frame_that_is_too_large(pair: tuple[ch.Channel, socket.socket]) -> None:
    with pytest.raises(ValueError, match="a frame holds"):
        pair[0].send(1, ch.STDIN, bytes(ch.FRAME_MAX + 1))


def test_taps_see_output_as_it_comes(pair: tuple[ch.Channel, socket.socket]) -> None:
    channel, guest = pair
    seen: list[tuple[bytes, bytes]] = []
    number, stream = channel.open(tap=lambda kind, data: seen.append((kind, data)))
    guest.sendall(frame(number, ch.STDERR, b"e") + frame(number, ch.STDOUT, b"o") + frame(number, ch.EXIT, b"0"))
    stream.events.get(timeout=5)
    assert seen == [(ch.STDERR, b"e"), (ch.STDOUT, b"o")]


WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@given(st.lists(WORDS, min_size=1), st.dictionaries(WORDS.filter(lambda w: w and "=" not in w), WORDS))
def test_a_run_frame_holds_every_word(argv: list[str], env: dict[str, str]) -> None:
    words = ch.pack_run(argv, env, "/tmp").decode().split("\0")[:-1]
    assert words[:3] == ["-", "/tmp", str(len(argv))]
    assert words[3 : 3 + len(argv)] == argv
    assert words[3 + len(argv) :] == [f"{key}={value}" for key, value in env.items()]


def test_words_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="NUL"):
        ch.pack_run(["a\0b"], {}, "/")
    with pytest.raises(ValueError, match="at most"):
        ch.pack_run(["x" * ch.FRAME_MAX], {}, "/")


def test_both_sides_agree_on_the_protocol() -> None:
    """numalab/guest/protocol.h is the other side's copy of the same constants."""
    header = (Path(ch.__file__).parent.parent / "guest" / "protocol.h").read_text()
    pairs = (
        "HOST_RUN RUN, HOST_STDIN STDIN, HOST_KILL KILL, HOST_RESUME RESUME, HOST_GET GET, HOST_PUT PUT, "
        "HOST_APPEND APPEND, HOST_OFF OFF, GUEST_HELLO HELLO, GUEST_BEAT BEAT, GUEST_STARTED STARTED, "
        "GUEST_STDOUT STDOUT, GUEST_STDERR STDERR, GUEST_MARK MARK, GUEST_EXIT EXIT, GUEST_DATA DATA, "
        "GUEST_STATUS STATUS"
    )
    names = {theirs: getattr(ch, ours) for theirs, ours in (pair.split() for pair in pairs.split(", "))}
    for name, value in names.items():
        assert f"#define {name} '{value.decode()}'" in header
    assert f"#define PROTOCOL_VERSION {ch.PROTOCOL_VERSION}" in header
    assert f"#define FRAME_MAX ({ch.FRAME_MAX // 1024} * 1024)" in header
    assert f"#define FRAME_HEADER {HEADER.size}" in header
