"""What a run may say of its replay log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onibi.platform.config import Settings
from onibi.platform.replay.log.segment_writer import RetentionSettings


@dataclass(frozen=True, kw_only=True)
class LogSettings(Settings):
    """The log of all rows on disk."""

    enabled: bool = True
    url: str | None = None  # folder or address (s3://…), a run in a folder of its id below; null: the run's own folder
    segment_bytes: int = 64 << 20  # of uncompressed rows; a group is sealed when it has so many …
    seal_seconds: float = 5.0  # … or when its oldest row has waited so long: what a machine's death costs
    overflow: Literal["block", "drop"] = "block"  # where the disk is slower than the actors
    on_error: Literal["stop", "continue"] = "continue"  # where the disk is full, read-only or gone; it is tried again
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    retention: RetentionSettings = field(default_factory=RetentionSettings)

    def __post_init__(self) -> None:
        if self.url == "":
            raise ValueError("url is empty; allowed: a folder, an address, or null for the run's own folder")
        if not 1 << 10 <= self.segment_bytes <= 1 << 30:
            raise ValueError(f"segment_bytes is {self.segment_bytes}; allowed: 1024 to 1073741824")
        if not 0 < self.seal_seconds <= 3600:
            raise ValueError(f"seal_seconds is {self.seal_seconds}; allowed: above 0, up to 3600")
