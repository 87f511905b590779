"""Running the kernel's make: a clean environment, progress from its output, no process left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from numalab.kernel import buildlog, tools

#: One line per thing made, as kbuild prints it: "  CC      mm/memory.o".
_STEP = re.compile(r" {2}[A-Z][A-Z0-9_+ ]*(?:\[M\])? +\S+")

#: Fixed, so that the same inputs make the same image bit by bit: the day 6.12 came out.
_STAMP = {
    "KBUILD_BUILD_TIMESTAMP": "Sun Nov 17 22:15:08 UTC 2024",
    "KBUILD_BUILD_USER": "numalab",
    "KBUILD_BUILD_HOST": "numalab",
    "KBUILD_BUILD_VERSION": "1",
    "LOCALVERSION": "",  # set: setlocalversion adds no "+" of its own
}

#: Should numalab be killed, this shell is told (pdeathsig) and ends make and everything below it: make
#: itself would leave compilers and linkers behind. What was made stays good, make is made for that.
_WARDEN = 'trap "trap : TERM; kill 0; wait; exit 143" TERM; "$@" & wait $!'


def jobs_default() -> int:
    """Return one job more than this process may use CPUs."""
    return len(os.sched_getaffinity(0)) + 1


def command(src: Path, out: Path, targets: Sequence[str], *, jobs: int = 1, more: Sequence[str] = ()) -> list[str]:
    """Return the words of a make command that builds `targets` of the tree `src` in `out`."""
    return ["make", "-C", str(src), f"O={out}", "ARCH=x86", f"-j{jobs}", *more, *targets]


def environment(masquerade: Path | None = None) -> dict[str, str]:
    """Return the environment of a build; `masquerade` is a directory in which gcc is ccache.

    ccache takes the compiler's place in PATH, not in CC: kbuild compares the commands of the last
    build and would compile everything anew the day ccache is installed.
    """
    env = {**tools.clean_environment(), **_STAMP}
    if masquerade is not None:
        env["PATH"] = f"{masquerade}:{env.get('PATH', os.defpath)}"
    return env


def masquerade(where: Path) -> Path | None:
    """Make (once) and return a directory in which gcc is ccache; None without ccache."""
    ccache = tools.which("ccache")
    if ccache is None:
        return None
    where.mkdir(parents=True, exist_ok=True)
    link = where / "gcc"
    if not (link.is_symlink() and os.readlink(link) == ccache):  # noqa: PTH115
        link.unlink(missing_ok=True)
        link.symlink_to(ccache)
    return where


def ask(src: Path, out: Path, target: str, env: dict[str, str]) -> str:
    """Return what a quick target such as `kernelrelease` prints."""
    argv = ["make", "-s", "--no-print-directory", *command(src, out, [target])[1:]]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise tools.failed(argv, done.returncode, done.stderr or done.stdout, purpose=f"make {target}")
    return done.stdout.strip().splitlines()[-1]


def run(
    argv: Sequence[str],
    *,
    what: str,
    log: Path,
    env: dict[str, str],
    on_step: Callable[[int, str], None] | None = None,
    keep: Sequence[int] = (),
    strip: str = "",
) -> int:
    """Run make with its output appended to `log`; returns the number of things it made.

    Args:
        argv: from `command`.
        what: names the work in the error.
        log: gets the command and everything make writes, byte for byte.
        env: from `environment`.
        on_step: called with the count so far and kbuild's line, per thing made.
        keep: descriptors (locks) that make inherits.
        strip: directory to take out of file names in the error.

    Raises:
        ExperimentError: it failed: with the first compiler error and the log's path.
    """
    setpriv = tools.which("setpriv")
    dying = [setpriv, "--pdeathsig", "TERM", "sh", "-c", _WARDEN, "sh"] if setpriv else []
    count = 0
    with log.open("ab", buffering=0) as out:  # whoever follows the log sees each line
        start = out.tell()
        out.write(f"$ {' '.join(argv)}\n".encode())
        process = subprocess.Popen(
            [*dying, *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep),
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                out.write(line)
                if _STEP.match(text := line.decode(errors="replace").rstrip()):
                    count += 1
                    if on_step:
                        on_step(count, text.strip())
            status = process.wait()
        finally:
            _end(process)
    if status:
        with log.open("rb") as whole:
            whole.seek(start)
            words = whole.read().decode(errors="replace")
        raise buildlog.failure(what, words, str(log), strip=strip)
    return count


def _end(process: subprocess.Popen[bytes]) -> None:
    """End make and everything below it, if it has not ended; first politely. Returns when all are gone."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)  # ProcessLookupError: the group is empty
                time.sleep(0.02)
            continue
        return
