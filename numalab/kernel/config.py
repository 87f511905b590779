"""From merged fragments to a whole `.config`: tinyconfig, our values, olddefconfig, and what survived."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from numalab.errors import ExperimentError
from numalab.kernel import make, tools
from numalab.kernel.fragments import Setting
from numalab.paths import write_atomic


@dataclass(frozen=True)
class Lost:
    """An asked-for value that is not in the final `.config`, and why as far as Kconfig tells."""

    setting: Setting
    got: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        wanted = self.setting.value if self.setting.value != "n" else "not set"
        got = self.got if self.got != "n" else "not set"
        return f"{self.setting.where}: {self.setting.symbol}: wanted {wanted}, got {got}; {self.reason}"


def parse_dotconfig(text: str) -> dict[str, str]:
    """Return symbol → value of a whole `.config`; what is not set is not in it."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))


def put(text: str, settings: Mapping[str, Setting]) -> str:
    """Return the `.config` `text` with `settings` in the place of what it says about their symbols."""
    name = re.compile(r"(?:# )?(CONFIG_\w+)(?:=| is not set)")
    kept = [line for line in text.splitlines() if not ((found := name.match(line)) and found[1] in settings)]
    return "\n".join([*kept, *(setting.text for setting in settings.values())]) + "\n"


def spare_none(_setting: Setting) -> bool:
    """Every asked-for value has to survive."""
    return False


def configure(
    src: Path,
    out: Path,
    settings: Mapping[str, Setting],
    *,
    log: Path,
    env: dict[str, str],
    spare: Callable[[Setting], bool] = spare_none,
) -> str:
    """Return the whole `.config` the tree `src` makes of `settings` on top of tinyconfig.

    Args:
        src: the (patched) source.
        out: a directory of its own: it ends with this `.config`, nothing is built there.
        settings: the merged fragments.
        log: gets what make writes.
        env: of make.
        spare: see `check`.

    Raises:
        ExperimentError: Kconfig failed, or an asked-for value did not survive; lists every one
            with the line that asked for it.
    """
    out.mkdir(parents=True, exist_ok=True)

    def step(target: str) -> None:
        make.run(make.command(src, out, [target]), what=f"make {target}", log=log, env=env, strip=str(src))

    step("tinyconfig")
    dotconfig = out / ".config"
    write_atomic(dotconfig, put(dotconfig.read_text(), settings))
    step("olddefconfig")
    text = dotconfig.read_text()
    check(settings, text, src, spare=spare)
    return text


def check(
    settings: Mapping[str, Setting], text: str, src: Path, *, spare: Callable[[Setting], bool] = spare_none
) -> None:
    """Raise ExperimentError unless every asked-for value is in the `.config` `text`.

    `spare` is asked about each that is not, and says whether that is all right.
    """
    got = parse_dotconfig(text)
    wrong = [
        (setting, got.get(symbol, "n"))
        for symbol, setting in settings.items()
        if not _same(setting.value, got.get(symbol, "n")) and not spare(setting)
    ]
    if wrong:
        lost = [Lost(setting, value, explain(src, setting)) for setting, value in wrong]
        raise ExperimentError(
            f"{len(lost)} of {len(settings)} asked-for values did not survive `make olddefconfig`:\n"
            + "\n".join(f"  {one}" for one in lost),
            remedy="ask for what they depend on in the same fragment, or do not ask for them",
        )


def _same(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    try:
        return int(wanted, 0) == int(got, 0)
    except ValueError:
        return False


def files_with(src: Path, symbol: str) -> list[str]:
    """Return the Kconfig files of the tree `src` that define `symbol` for x86; empty: it knows no such symbol."""
    bare = symbol.removeprefix("CONFIG_")
    done = tools.run(
        ["grep", "-rlE", "--include=Kconfig*", rf"^[[:space:]]*(menu)?config {bare}$", "."],
        purpose="looking through Kconfig",
        cwd=src,
        check=False,
    )
    return [file for file in done.stdout.split() if not re.match(r"\./arch/(?!x86/|Kconfig)", file)]


def explain(src: Path, setting: Setting) -> str:
    """Return why Kconfig may have refused a value: no such symbol, or what it depends on."""
    bare = setting.symbol.removeprefix("CONFIG_")
    files = files_with(src, setting.symbol)
    if not files:
        return "this source has no such symbol"
    if setting.value == "n":
        done = tools.run(
            ["grep", "-rnE", "--include=Kconfig*", rf"^[[:space:]]+select {bare}( |$)", "."],
            purpose="looking through Kconfig",
            cwd=src,
            check=False,
        )
        selects = [line.split(":")[:2] for line in done.stdout.splitlines()]
        there = ", ".join(f"{file[2:]}:{line}" for file, line in selects[:4])
        return f"selected at {there}" if there else f"on by default ({files[0][2:]})"
    needs: list[str] = []
    hidden = False
    for file in files[:2]:
        text = (src / file).read_text(errors="replace")
        stanza = re.search(
            rf"^\s*(?:menu)?config {bare}$(.*?)(?=^\s*(?:menu)?config |^(?:menu|endmenu|if |endif|choice)|\Z)",
            text,
            re.MULTILINE | re.DOTALL,
        )
        body = stanza[1] if stanza else ""
        needs += [" ".join(words.split()) for words in re.findall(r"^\s+depends on (.*)$", body, re.MULTILINE)]
        hidden |= not re.search(r"^\s+(?:bool|tristate|int|hex|string|prompt)[ \t]+\S", body, re.MULTILINE)
    words = f"depends on {' && '.join(needs)}" if needs else "see its Kconfig"
    return f"{words} ({'nobody can set it, it is selected by others; ' if hidden else ''}{files[0][2:]})"
