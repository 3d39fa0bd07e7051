from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segstream.errors import InvalidInputError, TooLargeError
from segstream.media.images import Image, ImageEncoding, ImageLimits, encode_image
from segstream.media.video import VideoReader, VideoWriter

WIDTH, HEIGHT, NUM_FRAMES = 64, 48, 20


def flat(colour: tuple[int, int, int], width: int = WIDTH, height: int = HEIGHT) -> Image:
    return np.full((height, width, 3), colour, np.uint8)


def noise(num_frames: int = NUM_FRAMES) -> list[Image]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(num_frames)]


def write_mp4(
    path: Path,
    frames: Iterable[Image],
    rate: Fraction = Fraction(10),
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Path:
    with VideoWriter(path, width, height, rate) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_with(path: Path, form: str, codec: str, frames: list[Image], degrees: float = 0) -> Path:
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if degrees:
            stream.set_display_rotation(degrees)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read_until_error(path: Path) -> tuple[int, InvalidInputError | None]:
    num_frames = 0
    try:
        with VideoReader(path) as reader:
            for _ in reader:
                num_frames += 1
    except InvalidInputError as error:
        return num_frames, error
    return num_frames, None


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_mp4(tmp_path / "clip.mp4", noise())


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    colours = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (128, 128, 128), (255, 255, 255)]
    path = write_mp4(tmp_path / "clip.mp4", [flat(colour) for colour in colours])
    with VideoReader(path) as reader:
        frames = list(reader)
    assert len(frames) == len(colours)
    for frame, colour in zip(frames, colours, strict=True):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert frame.dtype == np.uint8
        np.testing.assert_allclose(frame.mean((0, 1)), colour, atol=5)


def test_size_rate_and_count_are_told(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    with VideoReader(write_mp4(tmp_path / "clip.mp4", noise(), rate)) as reader:
        assert (reader.width, reader.height) == (WIDTH, HEIGHT)
        assert reader.frames_per_second == rate
        assert reader.num_frames == NUM_FRAMES


def test_the_count_is_estimated_where_the_container_states_none(tmp_path: Path) -> None:
    path = write_with(tmp_path / "clip.mkv", "matroska", "libx264", noise())
    with VideoReader(path) as reader:
        assert reader.num_frames == NUM_FRAMES


def test_count_and_rate_may_be_unknown(tmp_path: Path) -> None:
    path = write_with(tmp_path / "clip.h264", "h264", "libx264", noise())
    with VideoReader(path) as reader:
        assert reader.num_frames is None
        assert reader.frames_per_second == 25
        assert len(list(reader)) == NUM_FRAMES


def test_a_clip_is_read_once(clip: Path) -> None:
    with VideoReader(clip) as reader:
        assert len(list(reader)) == NUM_FRAMES
        assert list(reader) == []


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotated_clips_are_turned_the_way_they_are_shown(
    tmp_path: Path, degrees: int, turns: int
) -> None:
    upright = flat((20, 20, 20))
    upright[: HEIGHT // 2, : WIDTH // 2] = 230
    path = write_with(tmp_path / "clip.mp4", "mp4", "libx264", [upright] * 3, degrees)
    with VideoReader(path) as reader:
        shown = next(iter(reader))
        assert shown.shape == (reader.height, reader.width, 3)
        assert reader.frames_per_second == 10
    assert np.abs(shown.astype(int) - np.rot90(upright, turns)).mean() < 5


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (1, 1)])
def test_odd_sizes_are_padded_with_their_edge(tmp_path: Path, width: int, height: int) -> None:
    frames = [flat((40, 160, 90), width, height)] * 2
    path = write_mp4(tmp_path / "clip.mp4", frames, width=width, height=height)
    with VideoReader(path) as reader:
        read = list(reader)
        assert (reader.width, reader.height) == (width + width % 2, height + height % 2)
    assert np.abs(read[0].astype(int) - (40, 160, 90)).max() < 8


def test_the_index_of_a_written_clip_comes_first(clip: Path) -> None:
    data = clip.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_clip_appears_only_once_complete(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(10)) as writer:
        for frame in noise():
            writer.write(frame)
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("num_frames", [0, 3])
def test_an_error_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, num_frames: int) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def frames_then_error() -> Iterator[Image]:
        yield from noise(num_frames)
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write_mp4(path, frames_then_error())
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"old"


def test_a_clip_without_frames_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="at least one frame"),
        VideoWriter(tmp_path / "clip.mp4", WIDTH, HEIGHT, Fraction(10)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="the frame has shape"),
        VideoWriter(tmp_path / "clip.mp4", WIDTH, HEIGHT, Fraction(10)) as writer,
    ):
        writer.write(flat((0, 0, 0), WIDTH + 1))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "clip.mp4"
    with pytest.raises(InvalidInputError, match=r"missing/clip\.mp4 cannot be written") as refusal:
        VideoWriter(path, WIDTH, HEIGHT, Fraction(10))
    assert refusal.value.field == "output"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"missing\.mp4 is not a file") as refusal:
        VideoReader(tmp_path / "missing.mp4")
    assert refusal.value.field == "clip"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"some text\n" * 100,
        b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile clip.mp4\n",
        encode_image(flat((1, 2, 3)), ImageEncoding.PNG),
        encode_image(flat((1, 2, 3)), ImageEncoding.JPEG),
        bytes(range(256)) * 100,
    ],
    ids=["empty", "text", "playlist", "list of files", "png", "jpeg", "noise"],
)
def test_a_file_that_is_no_video_is_refused(clip: Path, data: bytes) -> None:
    path = clip.with_name("upload.mp4")
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"upload\.mp4 is not a video") as refusal:
        VideoReader(path)
    assert refusal.value.field == "clip"


def test_a_file_with_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidInputError, match=r"sound\.mp4 has no video stream"):
        VideoReader(path)


def test_large_clips_are_refused(clip: Path) -> None:
    with pytest.raises(TooLargeError, match="64x48; a side may have at most 63") as refusal:
        VideoReader(clip, limits=ImageLimits(max_side=63))
    assert refusal.value.field == "clip"
    with pytest.raises(TooLargeError, match="3072 pixels; at most 3071"):
        VideoReader(clip, limits=ImageLimits(max_pixels=3071))
    with VideoReader(clip, limits=ImageLimits(max_pixels=3072)) as reader:
        assert len(list(reader)) == NUM_FRAMES


def test_a_limit_counts_the_pixels_shown_not_those_coded(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "clip.mp4", [flat((9, 9, 9), 64, 34)] * 3, height=34)
    with VideoReader(path, limits=ImageLimits(max_pixels=64 * 34)) as reader:
        assert len(list(reader)) == 3


def test_metadata_that_is_not_text_is_no_obstacle(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes().replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert read_until_error(clip) == (NUM_FRAMES, None)


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", None), ("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")],
)
def test_a_clip_that_breaks_off_yields_its_start_and_then_raises(
    tmp_path: Path, form: str, codec: str | None
) -> None:
    path = tmp_path / "clip"
    if codec:
        write_with(path, form, codec, noise())
    else:
        write_mp4(path, noise())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    num_frames, error = read_until_error(path)
    assert NUM_FRAMES // 5 <= num_frames <= NUM_FRAMES * 4 // 5
    assert error is not None
    assert "clip breaks off" in error.message or "breaks off in the middle" in error.message
    assert error.field == "clip"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20))
def test_broken_clips_raise_nothing_but_our_errors(
    clip: Path, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(clip.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path = clip.with_name("broken.mp4")
    path.write_bytes(data)
    num_frames, error = read_until_error(path)
    assert num_frames > 0 or error is not None


def test_closing_twice_is_harmless(clip: Path) -> None:
    reader = VideoReader(clip)
    reader.close()
    reader.close()
