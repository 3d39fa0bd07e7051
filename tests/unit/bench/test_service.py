"""The arguments of the benchmark of the service; integration measures one."""

import pytest
from typer.testing import CliRunner

from segstream.bench.service import make_frames
from segstream.bench.wires import FrameFormat
from segstream.cli.bench import app
from segstream.media.images import ImageEncoding, decode_image


def refusal(*options: str) -> str:
    done = CliRunner().invoke(app, ["service", *options])
    assert done.exit_code != 0
    return done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--size", "512"), "size must be HxW"),
        (("--rate", "5", "--think-time", "10"), "think_time is 10 ms, but rate"),
        (("--compare", "--rate", "5"), "rate is 5.0, but compare measures closed loops"),
        (("--compare", "--wire", "rest"), "wire is rest, but compare"),
        (("--compare", "--encoding", "png"), "encoding is png, but compare"),
        (("--compare", "--server", "127.0.0.1:1"), "server is 127.0.0.1:1, but compare"),
        (("--plot", "figure.pdf"), "plot figure.pdf must end in .png or .svg"),
        (("--wire", "rest", "--encoding", "raw"), "encoding is raw, but over REST"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: tuple[str, ...], told: str) -> None:
    assert told in " ".join(refusal(*options).split())


@pytest.mark.parametrize("wire", ["grpc", "websocket", "rest"])
def test_a_service_that_is_not_there_is_told_in_one_line(wire: str) -> None:
    options = ("--wire", wire, "--server", "127.0.0.1:1", "--size", "16x16", "--duration", "1")
    assert refusal(*options).strip().splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("encoding", list(ImageEncoding))
def test_the_frames_are_of_the_size_and_differ(encoding: ImageEncoding) -> None:
    frames = make_frames(FrameFormat(40, 56, encoding), 3)
    images = [decode_image(frame, encoding, width=56, height=40) for frame in frames]
    assert {image.shape for image in images} == {(40, 56, 3)}
    assert len(set(frames)) == 3
