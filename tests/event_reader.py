"""An event file read by its format alone: records with checksums, messages of tensorboardX."""

import struct
from pathlib import Path

from ssl_jax.workdir.event_file import NAME


def crc32c(content: bytes) -> int:
    """Return the checksum of RFC 3720, bit by bit: the reversed polynomial 0x82F63B78."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """Return what TFRecord files store of it: rotated by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def read_events(out: Path) -> list:
    """Return the events of the one event file in a work directory, every checksum compared."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = out.glob(f"{NAME}*")
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        message = content[12 : 12 + length]
        assert content[8:12] == struct.pack("<I", masked(content[:8]))
        if length < 4000:  # bit by bit takes a while
            assert content[12 + length : 16 + length] == struct.pack("<I", masked(message))
        content = content[16 + length :]
        events.append(Event.FromString(message))
    return events


Spelled = list[tuple[int, dict[str, str]]]  # step, and numbers to six digits by name


def as_text(found: list[tuple[int, dict[str, float]]]) -> Spelled:
    """Return the numbers as metrics.csv spells them."""
    return [(step, {name: f"{value:.6g}" for name, value in row.items()}) for step, row in found]


def spelled(path: Path) -> Spelled:
    """Return step and cells of each row of metrics.csv, without the blanks."""
    names, *lines = (line.split(",") for line in path.read_text().splitlines())
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    return [(int(row.pop("step")), {n: text for n, text in row.items() if text}) for row in rows]


def scalars(out: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and scalars by tag of each event that has some, in the order of the file."""
    found = []
    for event in read_events(out):
        values = [v for v in event.summary.value if v.HasField("simple_value")]
        if values:
            found.append((event.step, {v.tag: v.simple_value for v in values}))
    return found
