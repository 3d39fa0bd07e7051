"""What a frame costs on a machine: the figures that planning and simulation rest on."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segstream.errors import InvalidInputError


class MachineProfile(BaseModel):
    """The cost of frames of one size and model on one kind of replica, as it was measured.

    A forward of n frames takes ``forward_fixed_ms + n * forward_frame_ms`` on ``threads`` cores;
    its logarithm varies with standard deviation ``forward_jitter``. What else a frame costs
    (decoding, encoding, the wire) takes ``overhead_ms`` on one core. Sizes are in bytes:
    ``frame_bytes`` in and ``label_map_bytes`` out per frame, ``session_bytes`` of a full memory on
    the device, ``base_bytes`` of a replica without sessions. Redis works ``redis_frame_ms`` on each
    frame.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    model: str
    size: str = Field(pattern=r"^\d+x\d+$", description="HEIGHTxWIDTH of the frames")
    device: str
    threads: int = Field(ge=1)
    memory_length: int = Field(ge=0)
    forward_fixed_ms: float = Field(ge=0)
    forward_frame_ms: float = Field(gt=0)
    forward_jitter: float = Field(ge=0, le=1)
    overhead_ms: float = Field(ge=0)
    redis_frame_ms: float = Field(0.0, ge=0)
    max_batch_size: int = Field(ge=1)
    frame_bytes: int = Field(ge=1)
    label_map_bytes: int = Field(ge=1)
    session_bytes: int = Field(ge=1)
    base_bytes: int = Field(ge=1)

    def forward_seconds(self, batch_size: int) -> float:
        """How long a forward of so many frames takes, without its jitter."""
        return (self.forward_fixed_ms + batch_size * self.forward_frame_ms) / 1000


def read_profile(path: Path) -> MachineProfile:
    """A profile that ``write_profile`` wrote. Raises InvalidInputError for any other file."""
    try:
        return MachineProfile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"profile {path}: {error.strerror}", field="profile") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInputError(
            f"profile {path} is not a machine profile: {where}: {first['msg']}", field="profile"
        ) from error


def write_profile(profile: MachineProfile, path: Path) -> None:
    """Write a profile as JSON."""
    path.write_text(profile.model_dump_json(indent=2) + "\n")
