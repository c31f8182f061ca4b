"""The same pictures in class folders, in a Parquet file and in a tar shard."""

import io
import tarfile
from pathlib import Path

import pytest


def write_doors(base: Path, pictures: dict[str, bytes]) -> dict[str, str]:
    """Write pictures by their names CLASS/KEY.png; return data.data_dir by data.name."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    places = {"folder": base / "folder", "parquet": base / "parquet", "tar": base / "train.tar"}
    for name, content in pictures.items():
        path = places["folder"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    places["parquet"].mkdir()
    rows = {
        "image": list(pictures.values()),
        "label": [name.partition("/")[0] for name in pictures],
    }
    parquet.write_table(pyarrow.table(rows), places["parquet"] / "train.parquet")
    with tarfile.open(places["tar"], "w") as archive:
        for name, content in pictures.items():
            label, _, file = name.partition("/")
            for end, data in (("png", content), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{label}-{file.partition('.')[0]}.{end}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return {name: str(place) for name, place in places.items()}
