"""The node's disk controller: NBD socket -> nbdfuse -> loop device -> the device name that lab.toml promises.

Run as `python3 -IS attach_disk.py SOCKET DEVICE` inside a node, and lives as long as the node. The loop device is set
up to clear itself: its last descriptor closes when this process dies, so a power cut leaves no loop device behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import time

LOOP_CTL_GET_FREE, LOOP_CONFIGURE, BLKROSET = 0x4C82, 0x4C0A, 0x125D
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16
BLOCK_SIZE_BYTES = 512
MOUNT_DIRECTORY = "/run/lab/disk-file"
DEADLINE_S = 10.0


def configure_loop(file: int) -> tuple[str, int]:
    """Attach the open `file` to a free loop device; returns (path, descriptor). linux/loop.h: struct loop_config."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        while True:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
            info = struct.pack("=QQQQQIIII", 0, 0, 0, 0, 0, number, 0, 0, flags).ljust(232, b"\0")
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, struct.pack("=II", file, BLOCK_SIZE_BYTES) + info + bytes(64))
                # read-only, if whoever had this number before said so, outlives that loop
                fcntl.ioctl(device, BLKROSET, struct.pack("=i", 0))
                return path, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another laboratory took this number between the two calls
                    raise
    finally:
        os.close(control)


def main() -> None:
    socket_path, device_name = sys.argv[1:3]
    os.makedirs(MOUNT_DIRECTORY, exist_ok=True)
    image = MOUNT_DIRECTORY + "/nbd"
    server = subprocess.Popen(["/usr/bin/nbdfuse", image, "--unix", socket_path], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_S
    while not os.path.exists(image):
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"disk {device_name}: nbdfuse did not offer {image}; is the disk server on {socket_path} alive?")
        time.sleep(0.01)
    file = os.open(image, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    path, _device = configure_loop(file)
    os.symlink(path, device_name)
    server.wait()


if __name__ == "__main__":
    main()
