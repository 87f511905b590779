"""A laboratory without machines: the contracts of numalab.run.lab, answered from memory.

What the program in a cell does is decided by its parameter `act`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numalab.errors import ExperimentError, MissingError, UserError
from numalab.kernel.image import KernelImage
from numalab.kinds import Kind
from numalab.machine.outcome import (
    BootFailureError,
    CommandFailedError,
    CommandTimeoutError,
    Completed,
    GuestFileError,
    GuestHangError,
    GuestPanicError,
    Mark,
    QemuDiedError,
)
from numalab.run.lab import Lab, MachineRequest
from numalab.run.policy import NONE, Knob, NodeNumber, Param, Policy

KNOB = "/proc/sys/vm/pgtable_alloc_node"
ZONE = "/proc/sys/vm/zone_reclaim_mode"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
OOPS = "BUG: kernel NULL pointer dereference, address: 0000000000000000\nOops: 0000 [#1]"

POLICIES = {
    policy.name: policy
    for policy in (
        NONE,
        Policy("first-touch", "default", knobs=(Knob(KNOB, "-1", optional=True),)),
        Policy(
            "remote",
            "tables on a node",
            knobs=(Knob(KNOB, "{node}"),),
            requires=("common",),
            params={"node": Param(NodeNumber, 1, "where")},
        ),
        Policy("spread", "interleaved", options={"memory": "interleave:{nodes}"}),
        Policy(
            "crowded",
            "company on a node",
            params={"away": Param(NodeNumber, 1, "where")},
            interference=("{away}",),
        ),
        Policy("mitosis", "two knobs", knobs=(Knob(ZONE, "1"), Knob(THP, "always"))),
    )
}


@dataclass(frozen=True)
class FakeParam:
    default: Any
    unit: str = ""


@dataclass(frozen=True)
class FakeMetric:
    unit: str


class FakeWorkload:
    def __init__(self, name: str, **params: Any) -> None:
        self.name = name
        self.summary = f"the workload {name}"
        self.params = {key: FakeParam(default) for key, default in params.items()}
        self.metrics = {"updates": FakeMetric("")}

    def argv(self, params: Mapping[str, Any]) -> list[str]:
        for key, value in params.items():
            if key == "size" and not str(value)[:-1].isdigit():
                raise UserError(f"size: {value!r} is not a size")
        words = [self.name]
        for key in self.params:
            if key in params:
                words += [f"--{key}", str(params[key])]
        return words

    def samples(self, stdout: bytes, accel: str) -> list[dict[str, Any]]:
        lines = stdout.decode(errors="replace").splitlines()
        if not lines or not lines[-1].startswith("numalab-result: "):
            raise ExperimentError(f"{self.name} printed no result line")
        values = json.loads(lines[-1].removeprefix("numalab-result: "))
        return [
            {"metric": metric, "value": value, "unit": "", "kind": Kind.COUNTED if accel == "tcg" else Kind.MEASURED}
            for metric, value in values.items()
        ]


WORKLOADS = {
    each.name: each
    for each in (
        FakeWorkload("gups", size="64M", memory="first-touch", act="ok"),
        FakeWorkload("btree", size="32M", act="ok"),
        *(
            FakeWorkload(name, size="1M", forever=False, memory="first-touch", cpus=None, threads=1, act="ok")
            for name in ("stream", "noise")
        ),
    )
}


class FakeProcess:
    pid = 77

    def __init__(self, machine: FakeMachine, argv: Sequence[str], on_mark: Callable[[Mark, Any], None] | None) -> None:
        self._machine = machine
        self._argv = list(argv)
        self._on_mark = on_mark
        self._done: Completed | None = None
        self._stubborn = False

    def wait_mark(self, name: str, timeout: float | None = None) -> Mark:
        """For the program beside: it reaches its mark, unless it is told to fail there."""
        self._machine.world.events.append(f"{self._argv[0]} {name}")
        if "no-start" in self._argv:
            self._end(2, b"")
            raise CommandFailedError(f"{self._done} before its mark {name!r}")
        if "slow-start" in self._argv:
            raise CommandTimeoutError(f"{self._argv[0]} did not reach its mark {name!r} within {timeout:g} s")
        if "early" in self._argv:
            self._end(None, b"", signal=9)
        return Mark(name, 0.1)

    def ended(self) -> bool:
        return self._done is not None

    def kill(self, signal: int = 9) -> None:
        self._machine.world.events.append(f"{self._argv[0]} told to end by signal {signal}")
        if "stubborn" in self._argv:
            self._end(None, b"", signal=9)
            self._stubborn = True
        else:
            self._end(0, b'numalab-result: {"updates": 9}\n')

    def _mark(self, name: str) -> None:
        self._machine.world.events.append(f"{self._argv[0]} {name}")
        if self._on_mark:
            self._on_mark(Mark(name, 0.5), self._machine)
        self._machine.files["/proc/vmstat"] = b"pgfault %d\nnr_free_pages 5\n" % self._machine.tick()

    def _end(self, status: int | None, stdout: bytes, *, signal: int | None = None) -> Completed:
        self._done = Completed(self._argv, status, signal, stdout, b"words on stderr\n", [])
        return self._done

    def wait(self, timeout: float | None = None) -> Completed:
        if self._stubborn:
            self._stubborn = False
            raise CommandTimeoutError(f"{self._argv[0]} ran longer than {timeout:g} s and was killed")
        if self._done:
            return self._done
        act = self._argv[self._argv.index("--act") + 1] if "--act" in self._argv else "ok"
        hook = self._machine.world.on_run
        if hook:
            hook(self._argv)
        if act == "panic":
            raise GuestPanicError(f"the guest's kernel panicked: NULL\n{OOPS}", oops=OOPS)
        if act == "hang":
            raise GuestHangError("the guest has had no heartbeat for 60 s; its last words:\nlast words")
        if act == "qemu-died":
            raise QemuDiedError("QEMU ended: out of memory\nlast words of the guest:\n(none)")
        if act == "unmarked":
            return self._end(0, b'numalab-result: {"updates": 5}\n')
        self._mark("init")
        self._mark("ready")
        if act == "timeout":
            self._end(None, b"half a line", signal=9)
            raise CommandTimeoutError(f"{self._argv[0]} ran longer than {timeout:g} s and was killed")
        if act == "explode":
            raise ValueError("explode")
        if act == "warn":
            with self._machine.console.open("a") as file:
                file.write("[    3.14] WARNING: CPU: 0 PID: 7 at mm/memory.c:1\n")
        if act == "signal":
            return self._end(None, b"", signal=11)
        if act == "fail":
            return self._end(3, b"no luck\n")
        if act == "silent":
            return self._end(0, b"")
        if act == "junk":
            return self._end(0, bytes(range(256)) * 4)
        if act == "flood":
            return self._end(0, b"x" * (100 << 20) + b'\nnumalab-result: {"updates": 5}\n')
        self._mark("done")
        return self._end(0, b'hello\nnumalab-result: {"updates": 5, "walks": null}\n')


@dataclass
class World:
    """What the fake machines share with the test."""

    boots: int = 0
    open: int = 0
    log: list[str] = field(default_factory=list)
    #: Marks of programs, snapshots, and what happened to the programs beside, in their order.
    events: list[str] = field(default_factory=list)
    boot_error: Exception | None = None
    free: int = 8 << 30
    total: int = 16 << 30
    stuck_knob: str = ""
    missing_kernels: tuple[str, ...] = ()
    kernel_bytes: dict[str, bytes] = field(default_factory=dict)
    snapshot_error: Exception | None = None
    on_run: Callable[[list[str]], None] | None = None


class FakeMachine:
    def __init__(self, world: World, request: MachineRequest, logs: Path) -> None:
        self.world = world
        self.topology = request.topology
        self.accel = "tcg"
        self.console = logs / "console.log"
        self.console.write_text(f"boot {world.boots}\n")
        self._ticks = 100
        self.files: dict[str, bytes] = {
            "/proc/vmstat": b"pgfault 100\nnr_free_pages 5\n",
            "/sys/devices/system/node/online": b"0-1\n",
            "/sys/devices/system/node/node0/numastat": b"numa_hit 7\n",
            "/sys/devices/system/node/node1/numastat": b"numa_hit 9\n",
            ZONE: b"0\n",
            THP: b"always [madvise] never\n",
        }
        if request.kernel.name != "stock":
            self.files[KNOB] = b"-1\n"

    def tick(self) -> int:
        self._ticks += 10
        return self._ticks

    def facts(self) -> dict[str, Any]:
        return {"accel": self.accel, "qemu_version": "0.0.0", "qemu_argv": ["qemu"]}

    def run(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        knobs = b"".join(b"%s:%s" % (path.encode(), text) for path, text in self.files.items() if "/vm/" in path)
        return Completed(list(argv), 0, None, knobs, b"")

    def at_mark(self, name: str, action: Callable[[int], None]) -> AbstractContextManager[None]:
        raise AssertionError(f"no policy of the fake laboratory waits for a mark, and one waits for {name!r}")

    def start(self, argv: Sequence[str], *, on_mark: Any = None, **_: Any) -> FakeProcess:
        self.world.log.append(" ".join(argv))
        with self.console.open("a") as file:
            file.write(f"ran {argv[0]} {len(self.world.log)}\n")
        return FakeProcess(self, argv, on_mark)

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestFileError(path, errno.ENOENT)
        return self.files[path]

    def write_file(self, path: str, data: bytes) -> None:
        self.world.log.append(f"{path}={data.decode().strip()}")
        if path not in self.files:
            raise GuestFileError(path, errno.ENOENT)
        if path == self.world.stuck_knob:
            return
        word = data.decode().strip()
        if path == THP:
            words = ["always", "madvise", "never"]
            if word not in words:
                raise GuestFileError(path, errno.EINVAL)
            self.files[path] = " ".join(f"[{each}]" if each == word else each for each in words).encode() + b"\n"
        else:
            self.files[path] = data


def make_lab(world: World, top: Path) -> Lab:
    """Return a Lab whose kernels lie in `top`."""

    def resolve(name: str) -> KernelImage:
        if name in world.missing_kernels:
            raise MissingError(f"kernel {name!r} is not built", remedy="numalab kernel build")
        path = top / f"bzImage-{name}"
        path.write_bytes(world.kernel_bytes.get(name, name.encode()))
        made = {"flavour": "stock"} if name == "stock" else {"flavour": name, "series": {"sets": ["common"]}}
        return KernelImage(name, path, f"6.12-{name}", build_id="ab" * 20, provenance=made)

    @contextmanager
    def open_machine(request: MachineRequest, logs: Path) -> Iterator[FakeMachine]:
        world.boots += 1
        if world.boot_error:
            (logs / "console.log").write_text("it stopped here\n")
            raise world.boot_error
        world.open += 1
        try:
            yield FakeMachine(world, request, logs)
        finally:
            world.open -= 1

    def snapshot(machine: Any, names: Sequence[str], label: str, archive: Path) -> dict[str, Any]:
        if world.snapshot_error:
            raise world.snapshot_error
        archive.write_bytes(b"npz")
        world.events.append(f"snapshot {label}")
        return {"label": label, "names": list(names)}

    def workload(name: str) -> FakeWorkload:
        return WORKLOADS[name]

    return Lab(
        kernel_names=("stock", "patched", "debug"),
        resolve_kernel=resolve,
        policies=lambda: POLICIES,
        workload_names=lambda: list(WORKLOADS),
        workload=workload,
        programs=dict,
        open_machine=open_machine,
        snapshot=snapshot,
        host_memory=lambda: world.total,
        free_memory=lambda: world.free,
    )


def boot_failure() -> BootFailureError:
    return BootFailureError("the guest did not answer within 120 s; its last words:\nit stopped here")


QUICK = """\
name = "quick"
repeats = 2
seed = 7

[matrix]
kernel = ["stock", "patched"]
policy = ["first-touch", "mitosis"]
workload = ["gups", "btree"]

[topologies.four]
nodes = 4
node_memory = "64M"
"""
