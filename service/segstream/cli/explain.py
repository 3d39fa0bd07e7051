"""``segstream explain``: where in the past a pixel looked."""

import json
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segstream.checkpoints import DEFAULT
from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.cli.output_files import check_writable
from segstream.errors import InvalidInputError

if TYPE_CHECKING:
    from segstream.media.images import Image
    from segstream.models import LMANet
    from segstream.models.explanation import Explanation


def explain(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file of any usual format.")],
    frame: Annotated[int, typer.Option(min=1, help="The frame, counted from 0.")],
    point: Annotated[str, typer.Option(metavar="X,Y", help="The pixel: column and row, from 0.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.png", help="The picture to write."),
    ] = Path("explanation.png"),
    model: Annotated[
        str, typer.Option(help="The network: a file, or a name that comes with the package.")
    ] = DEFAULT,
    network: NetworkOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
) -> None:
    """Draw where in the frames of its memory a pixel looked, and what it took from them."""
    with one_line_errors():
        x, y = _parse_point(point)
        check_writable(output, "output")
        from segstream.models import load
        from segstream.models.explanation import explain

        lmanet = load(model, networks=networks_of(network))
        images = _read(clip, frame, lmanet.config.stream_length + 1)
        explanation = explain(lmanet, images, x, y)
        _draw(lmanet, images, explanation, (x, y), f"{clip.name}, frame {frame}", output)
        figures = _figures(lmanet, explanation, frame)
    if as_json:
        typer.echo(json.dumps({"output": str(output), **figures}, indent=2))
    else:
        _print(figures, output)


def _parse_point(point: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", point)
    if match is None:
        raise InvalidInputError(f"point is {point!r}, must be X,Y in pixels", field="point")
    return int(match[1]), int(match[2])


def _read(clip: Path, frame: int, length: int) -> "list[Image]":
    """The frame and those before it, ``length`` at most."""
    from segstream.media.video import VideoReader

    first = max(0, frame - length + 1)
    images: deque[Image] = deque(maxlen=length)
    with VideoReader(clip) as reader:
        for index, image in enumerate(reader.images(first), start=first):
            images.append(image)
            if index == frame:
                return list(images)
    raise InvalidInputError(
        f"frame is {frame}, but {clip.name} ends before it, with {reader.num_frames} frames",
        field="frame",
    )


def _draw(
    model: "LMANet",
    images: "list[Image]",
    explanation: "Explanation",
    point: tuple[int, int],
    where: str,
    output: Path,
) -> None:
    import PIL.Image

    from segstream.media.attention_picture import Look, draw_look
    from segstream.media.overlay import percent

    names = [label.name for label in model.config.label_set.labels]
    shares = explanation.frame_shares
    ages = range(len(shares), 0, -1)
    captions = [
        f"{_ago(age)}: {percent(share)} of the attention"
        for age, share in zip(ages, shares, strict=True)
    ]
    label, alone = names[explanation.label], names[explanation.label_alone]
    captions.append(f"this frame: {label}; without memory {alone}")
    look = Look(
        images[-len(captions) :],
        explanation.weights,
        *point,
        model.spec.stride,
        model.config.window_size * model.spec.stride,
    )
    title = f"{where}: where pixel {point[0]},{point[1]} looked, and at what"
    picture = draw_look(
        look, captions, model.config.label_set, explanation.class_shares, title=title
    )
    PIL.Image.fromarray(picture).save(output, optimize=True)


def _ago(age: int) -> str:
    return f"{age} frame{'s' if age > 1 else ''} ago"


def _figures(model: "LMANet", explanation: "Explanation", frame: int) -> dict[str, Any]:
    names = [label.name for label in model.config.label_set.labels]
    shares = explanation.frame_shares
    classes = zip(names, explanation.class_shares, strict=True)
    return {
        "label": names[explanation.label],
        "label_without_memory": names[explanation.label_alone],
        "frames": {str(frame - len(shares) + i): share for i, share in enumerate(shares)},
        "outside": explanation.outside,
        "sink": explanation.sink,
        "classes": {name: share for name, share in classes if share > 0},
    }


def _print(figures: dict[str, Any], output: Path) -> None:
    from segstream.media.overlay import percent

    label, alone = figures["label"], figures["label_without_memory"]
    table = Table(show_header=False, title=f"{output}: {label}; without memory {alone}")
    for number, share in figures["frames"].items():
        table.add_row(f"frame {number}", percent(share))
    table.add_row("outside the frame", percent(figures["outside"]))
    if figures["sink"] > 0:
        table.add_row("sink", percent(figures["sink"]))
    table.add_section()
    for name, share in sorted(figures["classes"].items(), key=lambda item: -item[1]):
        table.add_row(name, percent(share))
    Console().print(table)
