import pytest

from segstream.planning.profile import MachineProfile


@pytest.fixture
def profile() -> MachineProfile:
    """10 ms for any forward and 10 ms for each frame in it; nothing varies."""
    return MachineProfile(
        model="street",
        size="96x128",
        device="cpu",
        threads=1,
        memory_length=3,
        forward_fixed_ms=10,
        forward_frame_ms=10,
        forward_jitter=0,
        overhead_ms=2,
        redis_frame_ms=0.1,
        max_batch_size=8,
        frame_bytes=10_000,
        label_map_bytes=1_000,
        session_bytes=400_000,
        base_bytes=400_000_000,
    )
