"""What the HTTP wire answers, as the OpenAPI document shows it."""

from pydantic import BaseModel, ConfigDict, Field

from segstream.engine import ModelInfo
from segstream.streaming import MemoryTier


class LabelSchema(BaseModel):
    """One class of a label set."""

    train_id: int
    label_id: int
    name: str
    colour: tuple[int, int, int] = Field(description="RGB")


class ModelSchema(BaseModel):
    """A model that the service has loaded."""

    name: str
    label_set: str
    labels: list[LabelSchema]
    memory_length: int = Field(description="Frames the memory holds, T")
    window_size: int = Field(description="Side of the attention window in feature pixels, P")
    is_default: bool

    @classmethod
    def of(cls, info: ModelInfo, *, is_default: bool) -> "ModelSchema":
        """The schema of a model."""
        labels = [
            LabelSchema(
                train_id=train_id, label_id=label.label_id, name=label.name, colour=label.colour
            )
            for train_id, label in enumerate(info.label_set.labels)
        ]
        return cls(
            name=info.name,
            label_set=info.label_set.name,
            labels=labels,
            memory_length=info.memory_length,
            window_size=info.window_size,
            is_default=is_default,
        )


class ModelsSchema(BaseModel):
    """All models of the service."""

    models: list[ModelSchema]


class SessionSchema(BaseModel):
    """A session that this replica holds, streaming or parked."""

    model_config = ConfigDict(from_attributes=True)

    session_id: str
    model: str
    owner: str = Field(description="The replica that holds the session")
    epoch: int = Field(description="Rises each time the session changes hands")
    is_streaming: bool
    next_frame_index: int
    num_label_maps: int
    tier: MemoryTier = Field(description="Where the memory is")
    device_bytes: int
    spill_bytes: int
    frame_bytes: int = Field(description="Bytes of the frames kept to rebuild the memory")
    page_age_seconds: list[float] = Field(
        description="Since it was memorised or came here; oldest page first"
    )
    idle_seconds: float
    last_move: str = Field(description="spill, restore or rebuild; empty: it never moved")
    last_move_age_seconds: float
    temporal_consistency: float | None = Field(
        description="Share of the pixels that stand still which keep their class from frame to "
        "frame: a running mean. Null: nothing to compare yet, or not measured"
    )


class SessionsSchema(BaseModel):
    """All sessions of this replica."""

    sessions: list[SessionSchema]


class InfoSchema(BaseModel):
    """What runs here."""

    version: str
    revision: str = Field(description="The git commit; unknown where there is none to tell")
    python: str
    torch: str
    engine: str = Field(description="Where frames are computed: in-process or triton")
    runtime: str = Field(
        description="What computes them: native, onnx or torch; torch.float16 and torch.bfloat16 "
        "are torch in that precision"
    )
    device: str
    replica: str = Field(description="The name of this replica")


class StatusSchema(BaseModel):
    """The answer of a probe."""

    status: str


class ProblemSchema(BaseModel):
    """An error, as RFC 9457 puts it."""

    title: str
    status: int
    detail: str = Field(description="Names the field, the value and the limit, and what to do")
    reason: str | None = Field(None, description="Names the kind of error to programs")
    field: str | None = Field(None, description="Parameter or header at fault, or body")
    value: str | None = Field(None, description="The name that was asked for")
    limit: float | None = Field(None, description="The bound that was passed")
