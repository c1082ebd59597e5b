"""The device's life: made, used, refused while in use, and gone whoever is killed. Real processes, root needed."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replication import kernel_nbd
from replication.attach import (
    Detached,
    DeviceEvent,
    DeviceProcess,
    DeviceSpec,
    Ended,
    Lost,
    Method,
    Ready,
    Refused,
    parse_event,
)
from replication.loop_device import LoopDevice, backing_file_name, loops_over
from replication.mounts import detach_mounts, is_mount_point, parse_mountinfo
from replication.nbdfuse_loop import NbdfuseLoop, image_name, nbdfuse_command

DEADLINE_S = 20.0
MIB = 1 << 20
DISK_BYTES = 64 * MIB
PROGRAMS = {"nbdkit": "nbdkit", "nbdfuse": "libnbd-bin", "mkfs.ext4": "e2fsprogs", "blockdev": "util-linux"}


class Bench:
    """Disks of nbdkit and devices over them; everything it began is ended by `clear`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[subprocess.Popen[bytes]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.devices: list[tuple[DeviceSpec, DeviceProcess]] = []
        self.mount_points: list[Path] = []

    def serve(self, volume: int = 0) -> tuple[DeviceSpec, subprocess.Popen[bytes]]:
        """A disk that survives its server, and where its device shall be."""
        disk = self.directory / f"disk-{volume}"
        if not disk.exists():
            disk.touch()
            os.truncate(disk, DISK_BYTES)
        socket = self.directory / f"{volume}.nbd"
        socket.unlink(missing_ok=True)
        server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "file", str(disk)])
        self.servers.append(server)
        until(socket.exists, "nbdkit listens")
        spec = DeviceSpec(
            socket, self.directory / "dev" / "r0" / str(volume), self.directory / f"{volume}.fuse",
            method=Method.NBDFUSE_AND_LOOP,
        )  # fmt: skip
        return spec, server

    def start(self, spec: DeviceSpec) -> DeviceProcess:
        device = DeviceProcess.start(spec)
        self.devices.append((spec, device))
        return device

    def attach(self, spec: DeviceSpec) -> tuple[DeviceProcess, str]:
        device = self.start(spec)
        event = next_event(device)
        assert isinstance(event, Ready), event
        return device, event.path

    def mount(self, spec: DeviceSpec) -> Path:
        """A new file system, mounted."""
        run("mkfs.ext4", "-q", str(spec.device))
        return self.mount_again(spec)

    def mount_again(self, spec: DeviceSpec) -> Path:
        mount_point = self.directory / f"srv-{spec.device.name}"
        mount_point.mkdir(exist_ok=True)
        run("mount", str(spec.device), str(mount_point))
        self.mount_points.append(mount_point)
        return mount_point

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for server in self.servers:
            if server.poll() is None:
                server.send_signal(signal.SIGCONT)
        for _, device in self.devices:
            device.kill()
        for mount_point in self.mount_points:
            detach_mounts(str(mount_point))
        for spec, device in self.devices:
            until(lambda device=device: device.poll() is not None, "the helper ends")  # type: ignore[misc]
            until(lambda spec=spec: not is_mount_point(str(spec.mount_directory)), "nbdfuse unmounted")  # type: ignore[misc]
        for server in self.servers:
            server.kill()
            server.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for program, package in PROGRAMS.items():
        assert shutil.which(program), f"apt-get install {package}"
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.clear()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S).stdout


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


def next_event(device: DeviceProcess) -> DeviceEvent:
    """As the daemon's loop does: wait for the descriptor, then read."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        event = device.read_event()
        if event is not None:
            return event
        assert time.monotonic() < deadline, "the attach helper says nothing"
        select.select([device], [], [], 0.1)


def child_of(process: int, name: str) -> int:
    """Process number of the child of that program."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = status.read_text(encoding="utf-8").rpartition(")")
        except OSError:
            continue
        if before.partition("(")[2] == name and int(after.split()[1]) == process:
            return int(status.parent.name)
    raise AssertionError(f"process {process} has no child {name}")


def state_of(process: int) -> str | None:
    """The letter of proc(5), "D" for one that waits and cannot be killed; None when it has ended."""
    try:
        letter = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return None
    return letter if letter != "Z" else None


def is_gone(spec: DeviceSpec, path: str) -> bool:
    return (
        not spec.device.is_symlink()
        and not spec.mount_directory.exists()
        and backing_file_name(path) != image_name(spec.device)
    )


def assert_gone(spec: DeviceSpec, path: str) -> None:
    until(lambda: is_gone(spec, path), f"{spec.device} ({path}) and all of it gone")


# the device in use


def test_what_was_written_to_a_device_is_there_when_it_is_attached_again(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    assert os.readlink(spec.device) == path
    mount_point = bench.mount(spec)
    (mount_point / "bill").write_text("paid")
    run("umount", str(mount_point))
    device.request_detach()
    assert next_event(device) == Detached()
    assert next_event(device) == Ended(0)
    assert is_gone(spec, path)
    assert device.read_event() is None

    bench.attach(spec)
    assert (bench.mount_again(spec) / "bill").read_text() == "paid"


def test_the_device_has_sectors_of_4096_bytes_and_bypasses_the_page_cache_of_the_file_below(bench: Bench) -> None:
    spec, _ = bench.serve()
    _, path = bench.attach(spec)
    assert run("blockdev", "--getss", "--getsize64", path).split() == ["4096", str(DISK_BYTES)]
    assert Path(f"/sys/block/{Path(path).name}/loop/dio").read_text().strip() == "1"
    assert Path(f"/sys/block/{Path(path).name}/loop/autoclear").read_text().strip() == "1"


def test_a_loop_number_that_somebody_left_read_only_can_be_written_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    file = os.open(disk, os.O_RDWR)
    try:
        before = LoopDevice.over(file, 512)
        run("blockdev", "--setro", before.path)
        before.let_go()
        held = [LoopDevice.over(file, 512)]  # another test may take the number first: all of them up to it
        while held[-1].path != before.path and len(held) < 16:
            held.append(LoopDevice.over(file, 512))
        assert held[-1].path == before.path
        assert run("blockdev", "--getro", before.path).strip() == "0"
        for loop in held:
            loop.let_go()
    finally:
        os.close(file)


def test_sectors_of_512_bytes_can_be_had(bench: Bench) -> None:
    served, _ = bench.serve()
    spec = DeviceSpec(served.socket, served.device, served.mount_directory, 512, Method.NBDFUSE_AND_LOOP)
    _, path = bench.attach(spec)
    assert run("blockdev", "--getss", path).split() == ["512"]


def test_what_stands_only_in_the_devices_buffers_is_flushed_before_it_goes(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"paid" * 1024, 8192)
    os.close(descriptor)
    device.request_detach()
    assert next_event(device) == Detached()
    with (bench.directory / "disk-0").open("rb") as disk:
        disk.seek(8192)
        assert disk.read(4096) == b"paid" * 1024


def test_several_devices_live_side_by_side_and_end_one_by_one(bench: Bench) -> None:
    specs = [bench.serve(volume)[0] for volume in range(3)]
    started = [bench.start(spec) for spec in specs]
    paths = []
    for device in started:
        event = next_event(device)
        assert isinstance(event, Ready)
        paths.append(event.path)
    assert len(set(paths)) == 3
    started[1].request_detach()
    assert next_event(started[1]) == Detached()
    assert [is_gone(spec, path) for spec, path in zip(specs, paths, strict=True)] == [False, True, False]
    started[0].request_detach()
    started[2].request_detach()
    assert next_event(started[0]) == next_event(started[2]) == Detached()
    assert not specs[0].device.parent.exists()


def test_helper_and_nbdfuse_are_deaf_to_sigterm_and_equally_dear_to_the_oom_killer(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    nbdfuse = child_of(device.process_id, "nbdfuse")
    scores = {Path(f"/proc/{process}/oom_score_adj").read_text() for process in (device.process_id, nbdfuse)}
    assert len(scores) == 1
    for process in (device.process_id, nbdfuse):
        os.kill(process, signal.SIGTERM)
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        os.fsync(descriptor)  # a round trip to the server
    finally:
        os.close(descriptor)
    assert device.poll() is None


# refusals


def test_a_mounted_device_is_not_detached_and_the_mount_point_is_named(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    mount_point = bench.mount(spec)
    device.request_detach()
    refused = next_event(device)
    assert isinstance(refused, Refused)
    assert f"mounted at {mount_point}" in refused.fact
    assert path in refused.subject
    (mount_point / "bill").write_text("still works")

    run("umount", str(mount_point))
    device.request_detach()
    assert next_event(device) == Detached()


def test_a_mount_in_another_mount_namespace_is_found_too(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, _ = bench.attach(spec)
    mount_point = bench.mount(spec)
    elsewhere = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo in; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    bench.processes.append(elsewhere)
    assert elsewhere.stdout is not None
    assert elsewhere.stdout.readline() == b"in\n"
    run("umount", str(mount_point))
    device.request_detach()
    refused = next_event(device)
    assert isinstance(refused, Refused)
    assert f"mounted at {mount_point} in the mount namespace of process {elsewhere.pid}" in refused.fact

    elsewhere.kill()
    elsewhere.wait()
    device.request_detach()
    assert next_event(device) == Detached()


def test_a_device_open_in_a_process_is_not_detached_and_the_process_is_named(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    reader = subprocess.Popen(["sh", "-c", f"exec 5<{path}; echo open; exec cat"], stdin=-1, stdout=-1)
    bench.processes.append(reader)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"open\n"
    device.request_detach()
    refused = next_event(device)
    assert isinstance(refused, Refused)
    assert f"open in process {reader.pid} (cat)" in refused.fact
    assert spec.device.is_symlink()

    reader.kill()
    reader.wait()
    device.request_detach()
    assert next_event(device) == Detached()


def test_a_lazily_unmounted_file_system_still_counts_as_use(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, _ = bench.attach(spec)
    mount_point = bench.mount(spec)
    kept = (mount_point / "bill").open("w")
    detach_mounts(str(mount_point))
    device.request_detach()
    refused = next_event(device)
    assert isinstance(refused, Refused)
    assert "unmounted lazily" in refused.remedy
    kept.close()
    device.request_detach()
    assert next_event(device) == Detached()


def test_without_a_server_the_device_is_refused_and_nothing_stays(bench: Bench) -> None:
    spec = DeviceSpec(
        bench.directory / "nobody", bench.directory / "dev" / "r0" / "0", bench.directory / "fuse",
        method=Method.NBDFUSE_AND_LOOP,
    )  # fmt: skip
    device = bench.start(spec)
    refused = next_event(device)
    assert isinstance(refused, Refused)
    assert "nbdfuse ended" in refused.fact
    assert str(spec.socket) in refused.remedy
    assert next_event(device) == Ended(1)
    assert not spec.device.parent.exists()
    assert not spec.mount_directory.exists()


def test_a_size_that_is_no_number_of_sectors_is_refused(bench: Bench) -> None:
    (bench.directory / "disk-0").touch()
    os.truncate(bench.directory / "disk-0", 4096 * 1024 + 512)
    spec, _ = bench.serve()
    refused = next_event(bench.start(spec))
    assert isinstance(refused, Refused)
    assert refused.fact == f"{4096 * 1024 + 512} bytes are no number of 4096 byte sectors"


def test_two_helpers_never_hold_one_device(bench: Bench) -> None:
    spec, _ = bench.serve()
    first, path = bench.attach(spec)
    second = bench.start(spec)
    refused = next_event(second)
    assert isinstance(refused, Refused)
    assert "another attach helper has it" in refused.fact
    assert next_event(second) == Ended(1)
    assert os.readlink(spec.device) == path
    first.request_detach()
    assert next_event(first) == Detached()


# killed


def test_a_killed_helper_takes_loop_mount_and_link_with_it(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, path = bench.attach(spec)
    nbdfuse = child_of(device.process_id, "nbdfuse")
    os.kill(device.process_id, signal.SIGKILL)
    assert next_event(device) == Ended(-signal.SIGKILL)
    assert_gone(spec, path)
    until(lambda: state_of(nbdfuse) is None, "nbdfuse ends")
    bench.attach(spec)


def test_remains_of_a_helper_killed_with_its_undertaker_are_cleared_by_the_next(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, _ = bench.attach(spec)
    os.kill(child_of(device.process_id, "undertaker"), signal.SIGKILL)
    device.kill()
    assert next_event(device) == Ended(-signal.SIGKILL)
    assert spec.device.is_symlink()
    assert is_mount_point(str(spec.mount_directory))

    again, path = bench.attach(spec)
    assert os.readlink(spec.device) == path
    again.request_detach()
    assert next_event(again) == Detached()
    assert is_gone(spec, path)


def test_the_end_of_the_daemon_is_the_end_of_the_device(bench: Bench) -> None:
    spec, _ = bench.serve()
    program = (
        "import sys, json, pathlib; from replication.attach import *\n"
        "s, d, m = map(pathlib.Path, sys.argv[1:])\n"
        "device = DeviceProcess.start(DeviceSpec(s, d, m, method=Method.NBDFUSE_AND_LOOP))\n"
        "import select; select.select([device], [], [])\n"
        "print(device.process_id, device.read_event().path, flush=True); sys.stdin.read()\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", program, str(spec.socket), str(spec.device), str(spec.mount_directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    bench.processes.append(daemon)
    assert daemon.stdout is not None
    helper, path = daemon.stdout.readline().decode().split()
    daemon.kill()
    daemon.wait()
    assert_gone(spec, path)
    until(lambda: state_of(int(helper)) is None, "the helper ends")


def test_a_dead_server_is_reported_at_the_next_use_and_blocks_nobody(bench: Bench) -> None:
    spec, server = bench.serve()
    device, path = bench.attach(spec)
    mount_point = bench.mount(spec)
    server.kill()
    server.wait()
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(mount_point / "bill", b"never paid")
    lost = next_event(device)
    assert isinstance(lost, Lost)
    assert path in lost.subject
    assert next_event(device) == Ended(1)
    assert not spec.device.is_symlink()
    detach_mounts(str(mount_point))
    assert_gone(spec, path)


def test_killing_the_helper_of_a_dead_server_leaves_only_the_mount_that_answers_eio(bench: Bench) -> None:
    spec, server = bench.serve()
    device, path = bench.attach(spec)
    mount_point = bench.mount(spec)
    server.kill()
    server.wait()
    device.kill()
    assert next_event(device) == Ended(-signal.SIGKILL)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(mount_point / "bill", b"never paid")
    detach_mounts(str(mount_point))
    assert_gone(spec, path)


def test_a_new_device_can_be_made_while_the_dead_one_is_still_mounted(bench: Bench) -> None:
    spec, _ = bench.serve()
    device, dead = bench.attach(spec)
    mount_point = bench.mount(spec)
    device.kill()
    assert next_event(device) == Ended(-signal.SIGKILL)

    again, path = bench.attach(spec)
    assert loops_over(image_name(spec.device)) == sorted([dead, path])
    detach_mounts(str(mount_point))
    until(lambda: backing_file_name(dead) is None, f"{dead} gone")
    again.request_detach()
    assert next_event(again) == Detached()


def test_killing_frees_a_detach_that_waits_for_a_server_that_hangs(bench: Bench) -> None:
    spec, server = bench.serve()
    device, path = bench.attach(spec)
    server.send_signal(signal.SIGSTOP)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, bytes(65536), 0)
    os.close(descriptor)  # waits for nobody, since the helper has it open too
    device.request_detach()
    until(lambda: state_of(device.process_id) == "D", "the helper hangs in its flush")
    assert device.read_event() is None
    device.kill()
    assert next_event(device) == Ended(-signal.SIGKILL)
    assert_gone(spec, path)


def test_killing_frees_an_unmount_that_waits_for_a_server_that_hangs(bench: Bench) -> None:
    spec, server = bench.serve()
    device, path = bench.attach(spec)
    mount_point = bench.mount(spec)
    (mount_point / "bill").write_text("paid")
    server.send_signal(signal.SIGSTOP)
    unmount = subprocess.Popen(["umount", str(mount_point)], stderr=subprocess.DEVNULL)
    bench.processes.append(unmount)
    until(lambda: state_of(unmount.pid) == "D", "umount hangs")
    device.kill()
    assert next_event(device) == Ended(-signal.SIGKILL)
    unmount.wait(DEADLINE_S)
    assert_gone(spec, path)


def test_nbdfuse_that_hangs_when_its_loop_has_gone_is_killed_for_the_unmount(bench: Bench) -> None:
    spec, _ = bench.serve()
    stack = NbdfuseLoop.attach(spec)
    try:
        assert not stack.let_go()
        stack.server.send_signal(signal.SIGSTOP)
        stack.finish()
        assert stack.server.poll() == -signal.SIGKILL
    finally:
        stack.server.kill()
        stack.server.wait()
        detach_mounts(str(spec.mount_directory))


# pure parts


def test_every_line_of_the_helper_is_an_event() -> None:
    error = {"subject": "device d", "fact": "in use", "remedy": "end it"}
    lines = [{"ready": "/dev/loop3"}, {"detached": True}, {"error": error}, {"lost": error}]
    assert [parse_event(json.dumps(line).encode()) for line in lines] == [
        Ready("/dev/loop3"), Detached(), Refused("device d", "in use", "end it"), Lost("device d", "in use", "end it"),
    ]  # fmt: skip


def test_mountinfo_is_read_with_blanks_in_names_and_with_optional_fields() -> None:
    text = (
        "29 1 7:3 / /srv/my\\040shop rw,noatime shared:7 master:2 - ext4 /dev/loop3 rw\n"
        "30 1 0:53 / /run/x rw - fuse.nbdfuse nbdfuse rw,user_id=0\n"
    )
    mounts = parse_mountinfo(text)
    assert [(mount.mount_point, mount.kind, mount.source, mount.device) for mount in mounts] == [
        ("/srv/my shop", "ext4", "/dev/loop3", "7:3"), ("/run/x", "fuse.nbdfuse", "nbdfuse", "0:53"),
    ]  # fmt: skip


def test_the_kernels_client_belongs_to_a_process_and_never_reconnects(tmp_path: Path) -> None:
    spec = DeviceSpec(Path("/run/r0/0.nbd"), Path("/dev/mirrorha/r0/0"), Path("/run/r0/0.fuse"))
    command = kernel_nbd.connect_command(spec, "/dev/nbd3")
    assert command[:4] == ["nbd-client", "-unix", "/run/r0/0.nbd", "/dev/nbd3"]
    assert {"-nofork", "-nonetlink"} <= set(command)
    assert "-persist" not in command
    assert command[command.index("-block-size") + 1] == "4096"
    assert kernel_nbd.disconnect_command("/dev/nbd3") == ["nbd-client", "-d", "/dev/nbd3"]
    for name, connected in (("nbd0", True), ("nbd10", False), ("nbd2", False), ("loop0", False)):
        (tmp_path / name).mkdir()
        if connected:
            (tmp_path / name / "pid").touch()
    assert kernel_nbd.free_devices(tmp_path) == ["nbd2", "nbd10"]


def test_nbdfuse_is_told_to_use_one_connection() -> None:
    spec = DeviceSpec(Path("/run/r0/0.nbd"), Path("/dev/mirrorha/r0/0"), Path("/run/r0/0.fuse"))
    image = spec.mount_directory / image_name(spec.device)
    assert image.name == "dev!mirrorha!r0!0"
    command = nbdfuse_command(spec, image, Path("/run/r0/pid"))
    assert command[1:3] == ["-C", "1"]
    assert command[-3:] == [str(image), "--unix", "/run/r0/0.nbd"]
