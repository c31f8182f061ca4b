"""The event file that TensorBoard reads: `events.out.tfevents.*`, one in a work directory.

It holds the rows of metrics.csv as scalars, the configuration as text, and at the end of a run the
figures. Each start writes it anew from the rows that it goes on from, so no step stands twice, in
whichever way it is read; and appends a row when metrics.csv gets one.

A scalar is a float32, as TensorBoard expects. It holds the six digits of metrics.csv: rounded to
six digits, both are equal. Only beyond 3.4e38 it is infinite, and below 1.2e-38 it loses digits.
"""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.workdir.recorder import Recorder, Row

NAME = "events.out.tfevents."  # begins the name; without "tfevents" TensorBoard passes it over
PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of a PNG, by its colour type


def require_package() -> None:
    """Raise UserError where tensorboardX cannot be imported."""
    try:
        _protocol()
    except Exception as error:  # protobuf has a kind of its own for one that is too new
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({str(error).splitlines()[0]})"
        raise UserError(
            f"tensorboard: got True, which takes the package tensorboardX{why}; "
            "pip install 'ssl-jax[tensorboard]', or leave the field out"
        ) from error


def recorder(out: Path, rows: list[Row]) -> Recorder:
    """Return the recorder of a start.

    Args:
        out: the work directory.
        rows: that the start goes on from.

    Returns:
        The recorder. It raises UserError where the file cannot be written.
    """
    path = out / f"{NAME}{int(time.time())}.{os.getpid()}"
    last = int(rows[-1]["step"]) if rows else 0
    drawn = _figures(out)

    def open_file(config: dict[str, Any]) -> None:
        for earlier in out.glob(f"{NAME}*"):
            with files.writing(earlier):
                earlier.unlink()
        now, spent = time.time(), rows[-1]["seconds"] if rows else 0.0
        begin = [_event(now, 0, file_version="brain.Event:2"), _start(now), _text(now, config)]
        # when they were taken, if the run had never stopped
        taken = [_scalars(now - spent + row["seconds"], int(row["step"]), row) for row in rows]
        files.write_whole(path, b"".join(begin + taken))

    def write(step: int, row: Row) -> None:
        nonlocal last
        files.append(path, _scalars(time.time(), step, row))
        last = step

    def close() -> None:
        found = _figures(out)
        new = [figure for figure in found if found[figure] != drawn.get(figure)]
        pictures = {figure: files.read_bytes(figure, "a figure") for figure in new}
        if path.exists():
            for figure, picture in pictures.items():
                if picture.startswith(PNG):
                    files.append(path, _image(time.time(), last, figure.stem, picture))

    return Recorder(open_file, write, close)


def _figures(out: Path) -> dict[Path, int]:
    """Return when each figure was written, in nanoseconds."""
    return {path: path.lstat().st_mtime_ns for path in sorted(out.glob("figures/*.png"))}


def _protocol() -> tuple[Any, Any]:
    """Return tensorboardX's messages, and its checksum, imported on first use."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    return event_pb2, masked_crc32c


def _event(at: float, step: int, **content: Any) -> bytes:
    """Return a record of the file: the message's length, the message, and a checksum of each."""
    messages, checksum = _protocol()
    message = messages.Event(wall_time=at, step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(message))
    parts = (length, message)
    return b"".join(part + struct.pack("<I", checksum(part)) for part in parts)


def _start(at: float) -> bytes:
    """Return the event at which a TensorBoard that is watching forgets what it has read."""
    return _event(at, 0, session_log={"status": "START"})


def _scalars(at: float, step: int, row: Row) -> bytes:
    values = [
        {"tag": name, "simple_value": value}
        for name, value in row.items()
        if value == value and name != "step"
    ]
    return _event(at, step, summary={"value": values})


def _text(at: float, config: dict[str, Any]) -> bytes:
    """Return the configuration as JSON, which Markdown shows as it is: indented by four."""
    lines = "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines())
    tensor = {"dtype": "DT_STRING", "string_val": [lines.encode()]}
    tensor["tensor_shape"] = {"dim": [{"size": 1}]}
    value = {"tag": "config/text_summary", "tensor": tensor}
    value["metadata"] = {"plugin_data": {"plugin_name": "text"}}
    return _event(at, 0, summary={"value": [value]})


def _image(at: float, step: int, tag: str, picture: bytes) -> bytes:
    width, height, _, kind = struct.unpack(">IIBB", picture[16:26])
    size = {"height": height, "width": width, "colorspace": CHANNELS.get(kind, 3)}
    image = size | {"encoded_image_string": picture}
    return _event(at, step, summary={"value": [{"tag": f"figures/{tag}", "image": image}]})
