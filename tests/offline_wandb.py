"""Read a W&B offline run back: protobuf records in the framing of a LevelDB log."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768


@dataclass
class OfflineRun:
    """What was logged."""

    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metric: str = ""
    images: list[Path] = field(default_factory=list)


def frames(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, fragments of (crc, length, type), type 1 whole, 2 to 4 its parts."""
    position, whole = 7, b""  # after W&B's own header
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def read_offline_run(folder: Path) -> OfflineRun:
    """The only run below a `wandb` folder."""
    (file,) = folder.glob("offline-run-*/*.wandb")
    run = OfflineRun()
    for data in frames(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id = record.run.run_id
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            run.history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            run.summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "metric" and record.metric.step_metric:
            run.step_metric = record.metric.step_metric
    run.images = sorted(file.parent.glob("files/media/images/**/*.png"))
    return run
