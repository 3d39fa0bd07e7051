"""Writes what ``segstream evaluate`` measures into the README's table and the model card.

    segstream evaluate --root CAMVID --row alternate_corrupt --json evaluation.json
    python benchmarks/accuracy.py evaluation.json

changes the row of the checkpoint in README.md and the part of the model card between its markers.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
MODEL_CARD = PROJECT / "service" / "segstream" / "checkpoints" / "lmanet-erfnet-camvid.md"
BEGIN, END = "<!-- begin evaluation -->", "<!-- end evaluation -->"
ROW = re.compile(r"^\| checkpoint, CamVid val at 480x360 \|.*$", re.MULTILINE)
METRICS = (("miou", "mIoU"), ("tc", "TC"), ("mvc8", "mVC8"), ("mvc16", "mVC16"))
NAMES = {
    "single_frame": "single frame",
    "logit_ema": "averaged logits",
    "control": "control",
    "memory": "memory",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluation", type=Path, help="JSON file of segstream evaluate")
    result = json.loads(parser.parse_args().evaluation.read_text())
    README.write_text(ROW.sub(lambda _: readme_row(result), README.read_text(), count=1))
    head, rest = MODEL_CARD.read_text().split(BEGIN)
    _, tail = rest.split(END)
    MODEL_CARD.write_text(f"{head}{BEGIN}\n\n{tables(result)}\n{END}{tail}")


def readme_row(result: Mapping[str, Any]) -> str:
    """The row of the checkpoint, as it stands in the README."""
    single, memory = (result["models"][name] for name in ("single_frame", "memory"))
    parts = [
        f"{memory['miou']:.1f} mIoU with memory, {single['miou']:.1f} without; "
        f"TC {memory['tc']:.1f} against {single['tc']:.1f}"
    ]
    if row := result["degraded"].get("alternate_corrupt"):
        parts.append(
            f"every other frame corrupted: {row['memory']['miou']:.1f} mIoU against "
            f"{row['single_frame']['miou']:.1f}"
        )
    card = "[model card](service/segstream/checkpoints/lmanet-erfnet-camvid.md)"
    return (
        f"| checkpoint, CamVid val at 480x360 | {'; '.join(parts)} "
        f"({card}, [accuracy](docs/accuracy.md)) | `segstream evaluate` |"
    )


def tables(result: Mapping[str, Any]) -> str:
    """The figures by class, and those on spoilt frames."""
    models = result["models"]
    lines = [
        _line("percent", *(NAMES[name] for name in models)),
        _line(*["---"] * (len(models) + 1)),
    ]
    for name in models["single_frame"]["iou"]:
        lines.append(_line(name, *(f"{model['iou'][name]:.1f}" for model in models.values())))
    for key, name in METRICS:
        lines.append(_line(f"**{name}**", *(_number(model[key], 2) for model in models.values())))
    if result["degraded"]:
        lines += [
            "",
            _line("mIoU / TC / mVC8", *(NAMES[name] for name in models)),
            _line(*["---"] * (len(models) + 1)),
        ]
    for row, ways in result["degraded"].items():
        cells = (
            " / ".join(_number(ways[name][key], 1) for key in ("miou", "tc", "mvc8"))
            for name in models
        )
        lines.append(_line(row, *cells))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
