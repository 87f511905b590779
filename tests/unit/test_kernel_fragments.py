"""Configuration fragments: parsing, merging, overriding."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numalab.errors import UserError
from numalab.kernel.fragments import Setting, digest, merge, parse, render

TEXT = """\
# SPDX-License-Identifier: GPL-2.0-only

# NUMA: what this is about.
CONFIG_NUMA=y
CONFIG_KVM=m  # a module will do
CONFIG_NODES_SHIFT=6
CONFIG_PHYSICAL_START=0x1000000
CONFIG_LOCALVERSION="-numa # lab"
# CONFIG_SLUB_TINY is not set
CONFIG_EXPERT=n
"""


def test_every_form_of_line_is_understood() -> None:
    found = {setting.symbol: (setting.value, setting.line) for setting in parse(TEXT, "base.config")}
    assert found == {
        "CONFIG_NUMA": ("y", 4),
        "CONFIG_KVM": ("m", 5),
        "CONFIG_NODES_SHIFT": ("6", 6),
        "CONFIG_PHYSICAL_START": ("0x1000000", 7),
        "CONFIG_LOCALVERSION": ('"-numa # lab"', 8),
        "CONFIG_SLUB_TINY": ("n", 9),
        "CONFIG_EXPERT": ("n", 10),
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("NUMA=y", "neither"),
        ("CONFIG_NUMA", "neither"),
        ("CONFIG_NUMA=yes", "no value"),
        ("CONFIG_NUMA=y z", "neither"),
        ('CONFIG_NAME="open', "neither"),
        ("CONFIG_NUMA = y", "neither"),
    ],
)
def test_a_bad_line_is_named(line: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"^x\.config:2: .*{words}"):
        parse(f"CONFIG_A=y\n{line}\n", "x.config")


def test_the_same_symbol_twice_in_a_file_shows_both_lines() -> None:
    with pytest.raises(UserError, match=r"CONFIG_A is set twice: f:1 and f:3"):
        parse("CONFIG_A=y\n\n# CONFIG_A is not set\n", "f")


def both(base: str, debug: str) -> dict[str, Setting]:
    return merge([parse(base, "base.config"), parse(debug, "debug.config")])


def test_fragments_that_disagree_show_both_places() -> None:
    with pytest.raises(UserError) as caught:
        both("# c\nCONFIG_A=y\n", "\n\n# CONFIG_A is not set\n")
    message = str(caught.value)
    assert "base.config:2 has 'CONFIG_A=y'" in message
    assert "debug.config:3 has '# CONFIG_A is not set'" in message
    assert "# override" in caught.value.remedy


@pytest.mark.parametrize(
    "debug",
    [
        "CONFIG_A=m # override: a module is enough\n",
        "# override\nCONFIG_A=m\n",
        "# override: a module is enough\n\nCONFIG_A=m\n",
    ],
)
def test_an_override_wins(debug: str) -> None:
    merged = both("CONFIG_A=y\nCONFIG_B=y\n", debug)
    assert (merged["CONFIG_A"].value, merged["CONFIG_A"].file) == ("m", "debug.config")
    assert merged["CONFIG_B"].value == "y"


def test_an_unset_line_can_be_an_override() -> None:
    assert both("CONFIG_A=y\n", "# CONFIG_A is not set  # override: too slow\n")["CONFIG_A"].value == "n"


def test_an_override_counts_for_one_line_only() -> None:
    with pytest.raises(UserError, match="CONFIG_B"):
        both("CONFIG_A=y\nCONFIG_B=y\n", "# override\nCONFIG_A=n\nCONFIG_B=n\n")


def test_prose_about_overriding_is_no_override() -> None:
    with pytest.raises(UserError, match="disagree"):
        both("CONFIG_A=y\n", "# override the default one day\nCONFIG_A=n\n")


@pytest.mark.parametrize(("base", "words"), [("CONFIG_A=m\n", "has the same value"), ("CONFIG_B=y\n", "nothing")])
def test_an_override_of_nothing_is_an_error(base: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"debug.config:1: CONFIG_A overrides nothing.*{words}|overrides nothing$"):
        both(base, "CONFIG_A=m # override: once it was needed\n")


def test_the_digest_is_about_values_only() -> None:
    one = merge([parse("# why\nCONFIG_A=y\n\nCONFIG_B=n\n", "a")])
    two = merge([parse("# CONFIG_B is not set\n", "b"), parse("CONFIG_A=y\n", "c")])
    assert digest(one) == digest(two)
    assert digest(one) != digest(merge([parse("CONFIG_A=y\n", "a")]))


symbols = st.text(string.ascii_uppercase + string.digits + "_", min_size=1, max_size=12).map("CONFIG_{}".format)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=20)
values = st.one_of(
    st.sampled_from("ymn"),
    st.integers(-(2**31), 2**63).map(str),
    st.integers(0, 2**64).map(hex),
    texts.map('"{}"'.format),
)
comments = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).filter(
    lambda text: not re.match(r"\s*(override|CONFIG_)", text)
)


@given(st.dictionaries(symbols, values, max_size=20), st.lists(comments, min_size=1, max_size=5), st.data())
def test_rendering_and_parsing_agree(wanted: dict[str, str], notes: list[str], data: st.DataObject) -> None:
    lines = []
    for symbol, value in wanted.items():
        lines += [f"# {note}" for note in data.draw(st.lists(st.sampled_from(notes), max_size=2))]
        lines.append(f"# {symbol} is not set" if value == "n" and data.draw(st.booleans()) else f"{symbol}={value}")
    settings = merge([parse("\n".join(lines), "any.config")])
    assert {symbol: setting.value for symbol, setting in settings.items()} == wanted
    again = merge([parse(render(settings), "again.config")])
    assert digest(again) == digest(settings)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_with_its_line(text: str) -> None:
    try:
        settings = parse(text, "x.config")
    except UserError as error:
        assert re.search(r"x\.config:\d+", str(error))
    else:
        assert all(1 <= setting.line <= len(text.splitlines()) for setting in settings)
