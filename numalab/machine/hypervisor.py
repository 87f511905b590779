"""Connections to libvirt: the in-process driver by default, the system's daemon by option.

`qemu:///embed` (https://libvirt.org/drvqemu.html#embedded-driver) runs the QEMU driver in this process: no daemon,
no root. Each process has a directory of its own with a lock that dies with it, so that the next
start can tell a stray machine from one in use.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numalab.errors import MachineLostError, MissingError, UserError, nearest
from numalab.paths import cache_dir, runtime_dir

SYSTEM_URI = "qemu:///system"
_QEMU_CONF = """\
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
security_driver = "none"
seccomp_sandbox = 1
dynamic_ownership = 0
remember_owner = 0
max_core = 0
dump_guest_core = 0
"""
_ROOT_CONF = 'user = "root"\ngroup = "root"\n'
_lock = threading.Lock()
_state: dict[str, Any] = {}


def libvirt() -> Any:
    """Return the libvirt module with its event loop running.

    Raises:
        MissingError: libvirt-python is not installed.
    """
    # Read at import. The driver logs to stderr otherwise; its errors reach us as exceptions.
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
    try:
        import libvirt as module
    except ImportError as error:
        raise MissingError(
            f"libvirt-python cannot be imported ({error})",
            remedy="apt-get install libvirt-dev pkg-config gcc python3-dev, then pip install libvirt-python",
        ) from error
    with _lock:
        if "events" not in _state:
            # Errors come back as exceptions; without this libvirt prints them as well.
            module.registerErrorHandler(lambda *_: None, None)
            module.virEventRegisterDefaultImpl()
            thread = threading.Thread(target=_run_events, args=(module,), name="libvirt-events", daemon=True)
            thread.start()
            _state["events"] = thread
    return module


def _run_events(module: Any) -> None:
    while True:
        module.virEventRunDefaultImpl()


def home() -> Path:
    """This process's directory for machines: made, locked, and cleaned of strays on first use."""
    with _lock:
        if _state.get("pid") != os.getpid():
            _state.pop("home", None)
        if "home" not in _state:
            with _alone():
                _sweep()
                path = runtime_dir("m", uuid.uuid4().hex[:8])
                handle = (path / "lock").open("w")
                fcntl.flock(handle, fcntl.LOCK_EX)
            _state.update(home=path, lock=handle, pid=os.getpid())
            atexit.register(_leave, path, os.getpid())
        result: Path = _state["home"]
        return result


def _leave(path: Path, pid: int) -> None:
    if os.getpid() == pid:
        _kill_machines(path)
        shutil.rmtree(path, ignore_errors=True)
        # Later the module of libvirt is gone, and each connection complains that it cannot be closed.
        for uri in [key for key in _state if key.startswith("qemu:")]:
            del _state[uri]


def connect(uri: str = "embed") -> Any:
    """Return an open libvirt connection; `uri` is "embed" or a libvirt URI such as qemu:///system.

    A process has one kind: once the embedded driver is open, libvirt sends qemu:///system to it as well.

    Raises:
        UserError: `uri` is neither.
        MissingError: the driver or the daemon is not there.
    """
    if uri != "embed" and not uri.startswith("qemu"):
        raise UserError(f"not a connection: {uri!r}{nearest(uri, ('embed', SYSTEM_URI, 'qemu:///session'))}")
    module = libvirt()
    if uri == "embed":
        root = home()
        # Asking QEMU what it can do takes seconds; the answer is kept, and checked by libvirt against QEMU's file.
        if not (root / "cache").exists():
            (root / "cache").symlink_to(cache_dir("libvirt"))
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc" / "qemu.conf").write_text(_QEMU_CONF + (_ROOT_CONF if os.getuid() == 0 else ""))
        uri = f"qemu:///embed?root={root}"
    with _lock:
        if uri in _state and _state[uri].isAlive():
            return _state[uri]
        try:
            _state[uri] = module.open(uri)
        except module.libvirtError as error:
            raise MissingError(
                f"libvirt cannot open {uri}: {error}",
                remedy="apt-get install libvirt-daemon qemu-system-x86"
                + ("; systemctl start libvirtd" if "system" in uri else ""),
            ) from error
        return _state[uri]


def sweep() -> list[Path]:
    """Kill machines whose numalab is gone and remove what it left; return the directories removed."""
    with _alone():
        return _sweep()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other numalabs from making or sweeping directories: one that is made is not locked at once."""
    with (runtime_dir() / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sweep() -> list[Path]:
    removed = []
    for path in sorted(runtime_dir("m").iterdir()):
        with (path / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _kill_machines(path)
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _kill_machines(path: Path) -> None:
    """Kill every QEMU whose command line names `path`."""
    needle = str(path).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"qemu" in words.split(b"\0")[0] and needle in words:
                os.kill(int(entry.name), signal.SIGKILL)


def qemu_pid(name: str) -> int:
    """Return the process id of the QEMU of the domain `name`.

    Raises:
        MachineLostError: there is none.
    """
    for path in (home() / "run/qemu" / f"{name}.pid", Path("/run/libvirt/qemu") / f"{name}.pid"):
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    raise MachineLostError(f"the machine {name} has no QEMU any more")


def qemu_words(name: str) -> str:
    """What QEMU wrote, and libvirt's line on its end, out of libvirt's log of it: all behind the command line."""
    for path in (home() / "log/qemu" / f"{name}.log", Path("/var/log/libvirt/qemu") / f"{name}.log"):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            argv_end = max((n for n, line in enumerate(lines) if line.endswith("\\")), default=-1) + 1
            return "\n".join([line for line in lines[argv_end + 1 :] if "is tainted" not in line][-5:])
    return ""


def check_socket_path(path: Path) -> None:
    """Raise UserError when `path` is too long for a Unix socket (sun_path holds 107 bytes)."""
    if len(os.fsencode(path)) > 107:
        raise UserError(
            f"{path} is too long for a socket", remedy="set XDG_RUNTIME_DIR (or TMPDIR) to a short directory"
        )
