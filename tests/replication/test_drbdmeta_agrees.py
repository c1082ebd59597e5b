"""DRBD's own metadata tool is the judge: it reads what we write, and we read what it writes."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from replication.create_metadata import create, inspect
from replication.protocol.activity_log import ActivityLog
from replication.protocol.attachment import Attachment, clean_stop, dump_metadata
from replication.protocol.metadata import Layout, MetadataFlag, Superblock, internal_layout, just_created

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZES = [
    MIB,
    MIB + 4 * KIB,
    64 * MIB,
    128 * MIB,
    128 * MIB + 8 * KIB,
    GIB,
    GIB + 12 * KIB,
    10 * GIB,
    100 * GIB - 4 * KIB,
    128 * GIB,
    TIB,
]
STRIPES = [(1, 8), (2, 8), (3, 5), (4, 16)]
MINOR = "147"


@pytest.fixture(autouse=True, scope="module")
def program() -> Iterator[None]:
    assert shutil.which("drbdmeta"), "apt-get install drbd-utils"
    Path("/var/run/drbd").mkdir(parents=True, exist_ok=True)
    yield
    Path(f"/var/lib/drbd/drbd-minor-{MINOR}.lkbd").unlink(missing_ok=True)


def drbdmeta(image: Path, *command: str) -> str:
    done = subprocess.run(
        ["drbdmeta", "--force", MINOR, "v08", str(image), "internal", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def image_of(tmp_path: Path, size_bytes: int) -> Path:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    return image


def read(image: Path, offset: int, length: int) -> bytes:
    with image.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def digest(image: Path, layout: Layout) -> str:
    """Of all the metadata."""
    return hashlib.sha256(read(image, layout.bitmap_offset, layout.capacity_bytes - layout.bitmap_offset)).hexdigest()


def write(image: Path, *writes: tuple[int, bytes]) -> None:
    with image.open("r+b") as file:
        for offset, data in writes:
            file.seek(offset)
            file.write(data)


def attachment(image: Path) -> Attachment:
    with image.open("rb") as file:
        return inspect(file.fileno(), image.stat().st_size, str(image))


def dumped(text: str) -> dict[str, str]:
    """Every line of the dump that says one thing, comment signs dropped; drbdmeta shows flags elsewhere."""
    found = re.findall(r"^\s*(?:# )?([a-z][\w-]*) (\w+);?$", text, re.MULTILINE)
    return {name: value for name, value in found if name not in ("at", "bm-bytes", "flags")}


def uuids(text: str) -> list[str]:
    return re.findall(r"0x[0-9A-F]{16}", text)


def in_use(layout: Layout, la_size_sectors: int | None = None) -> Superblock:
    """Of a Primary; all fields different."""
    return replace(
        just_created(layout),
        la_size_sectors=layout.data_bytes // 512 if la_size_sectors is None else la_size_sectors,
        current_uuid=0x1122334455667788,
        bitmap_uuid=0x99AABBCCDDEEFF01,
        history0=0x2345,
        history1=0x6789,
        device_uuid=0xABCDEF,
        flags=MetadataFlag.CONSISTENT | MetadataFlag.WAS_UP_TO_DATE | MetadataFlag.PRIMARY_IND,
        peer_max_bio_size=1 << 20,
        clean=False,
    )


@pytest.mark.parametrize("size", SIZES)
def test_drbdmeta_accepts_our_metadata(tmp_path: Path, size: int) -> None:
    image = image_of(tmp_path, size)
    layout = create(str(image))
    dump = dumped(drbdmeta(image, "dump-md"))
    assert int(dump["md_offset"]) == layout.superblock_offset
    assert int(dump["al_offset"]) == layout.al_offset
    assert int(dump["bm_offset"]) == layout.bitmap_offset
    assert dump["al-extents"] == "1237"
    drbdmeta(image, "apply-al")
    assert attachment(image).superblock == replace(just_created(layout), flags=MetadataFlag(0), clean=False)


@pytest.mark.parametrize(("stripes", "stripe_size"), STRIPES)
@pytest.mark.parametrize("size", SIZES)
def test_we_read_what_drbdmeta_created(tmp_path: Path, size: int, stripes: int, stripe_size: int) -> None:
    image = image_of(tmp_path, size)
    drbdmeta(image, "create-md", "--al-stripes", str(stripes), "--al-stripe-size-kB", str(4 * stripe_size))
    layout = internal_layout(size, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    superblock = Superblock.decode(read(image, layout.superblock_offset, 4096))
    assert superblock == just_created(layout, al_extents=257)
    assert superblock.layout(size) == layout
    theirs = digest(image, layout)
    create(str(image), al_extents=257, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    assert digest(image, layout) == theirs


@pytest.mark.parametrize("size", [64 * MIB, GIB, 10 * GIB])
def test_both_say_the_same_of_a_disk_that_was_used(tmp_path: Path, size: int) -> None:
    image = image_of(tmp_path, size)
    layout = create(str(image))
    write(image, (layout.bitmap_offset + 17, b"\x81"), *clean_stop(in_use(layout), layout))
    theirs, ours = drbdmeta(image, "dump-md"), dump_metadata(attachment(image))
    assert dumped(ours) == dumped(theirs)
    assert uuids(ours)[:5] == uuids(theirs)[:5]
    assert "# bits-set 2;" in theirs


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        (MetadataFlag.CONSISTENT, 0),
        (MetadataFlag.WAS_UP_TO_DATE, 1),
        (MetadataFlag.PRIMARY_IND, 2),
        (MetadataFlag.CONNECTED_IND, 3),
        (MetadataFlag.FULL_SYNC, 4),
        (MetadataFlag.PEER_OUT_DATED, 5),
        (MetadataFlag.CRASHED_PRIMARY, 6),
    ],
    ids=str,
)
def test_drbdmeta_sees_our_flags(tmp_path: Path, flag: MetadataFlag, place: int) -> None:
    image = image_of(tmp_path, 64 * MIB)
    layout = create(str(image))
    write(image, (layout.superblock_offset, replace(in_use(layout), flags=flag).encode()))
    *found, flags = drbdmeta(image, "get-gi").strip().split(":", 4)
    assert found == ["1122334455667788", "99AABBCCDDEEFF01", "0000000000002345", "0000000000006789"]
    assert flags.split(":") == ["1" if at == place else "0" for at in range(7)]


def test_drbdmeta_takes_our_metadata_for_clean_only_after_a_clean_stop(tmp_path: Path) -> None:
    image = image_of(tmp_path, 64 * MIB)
    layout = create(str(image))
    write(image, (layout.superblock_offset, in_use(layout).encode()))
    done = subprocess.run(
        ["drbdmeta", MINOR, "v08", str(image), "internal", "dump-md"], capture_output=True, check=False
    )
    assert done.returncode
    write(image, *clean_stop(in_use(layout), layout))
    assert "unclean" not in drbdmeta(image, "dump-md")


@pytest.mark.parametrize(("stripes", "stripe_size"), STRIPES)
@pytest.mark.parametrize("al_extents", [67, 919, 1237, 3676])
def test_the_log_of_a_crashed_primary_marks_the_same_blocks_in_both(
    tmp_path: Path, al_extents: int, stripes: int, stripe_size: int
) -> None:
    """The mirror ends with a page of bitmap, so that not one bit beyond its end can differ."""
    image = image_of(tmp_path, 129 * GIB)
    layout = create(str(image), al_stripes=stripes, al_stripe_size_4k=stripe_size)
    extents = 128 * GIB // (4 * MIB)
    write(image, (layout.superblock_offset, in_use(layout, 128 * GIB // 512).encode()))
    rng = random.Random(al_extents * stripes)
    log = ActivityLog(al_extents, layout, first_transaction=rng.randrange(1 << 32))
    for _ in range(rng.randrange(3, 40)):
        activation = log.activate([rng.randrange(extents) for _ in range(rng.randrange(1, 67))])
        assert activation is not None
        write(image, *activation.writes)
    ours = attachment(image)
    assert ours.replayed_extents == set(log.hot)
    drbdmeta(image, "apply-al")
    assert read(image, layout.bitmap_offset, len(ours.bitmap.data)) == ours.bitmap.data
    assert read(image, layout.al_offset, layout.al_bytes) == ours.stages[-1][0][1]
    theirs = Superblock.decode(read(image, layout.superblock_offset, 4096))
    assert theirs == replace(in_use(layout, 128 * GIB // 512), flags=theirs.flags, clean=True)
    assert theirs.flags == in_use(layout).flags | MetadataFlag.AL_CLEAN


def test_a_torn_newest_transaction_is_ignored_by_both(tmp_path: Path) -> None:
    image = image_of(tmp_path, 129 * GIB)
    layout = create(str(image))
    write(image, (layout.superblock_offset, in_use(layout, 128 * GIB // 512).encode()))
    log = ActivityLog(1237, layout)
    for extent in range(11):
        activation = log.activate([extent])
        assert activation is not None
        ((offset, block),) = activation.writes
        write(image, (offset, block[:440] if extent == 10 else block))  # the context of transaction 2 stays behind it
    ours = attachment(image)
    assert ours.replayed_extents == set(range(10))
    drbdmeta(image, "apply-al")
    assert read(image, layout.bitmap_offset, len(ours.bitmap.data)) == ours.bitmap.data


def test_beyond_the_end_of_the_mirror_we_set_no_bits_but_before_it_the_same(tmp_path: Path) -> None:
    image = image_of(tmp_path, 64 * MIB)
    layout = create(str(image))
    activation = ActivityLog(67, layout).activate([0, 3, layout.data_bytes // (4 * MIB)])
    assert activation is not None
    write(image, (layout.superblock_offset, in_use(layout).encode()), *activation.writes)
    ours = attachment(image)
    drbdmeta(image, "apply-al")
    assert attachment(image).bitmap.data == ours.bitmap.data
    assert ours.bitmap.count == 1024 + 1024 + layout.data_bytes // 4096 % 1024
