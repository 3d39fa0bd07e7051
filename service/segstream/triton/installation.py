"""Where a Triton server is on this machine, and whether its Python stub can start here."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from segstream.errors import UnavailableError

HOW_TO_GET_ONE = (
    "no tritonserver on this machine. On Linux x86-64 with glibc: "
    "pip install --no-deps nvidia-pytriton==0.7.0 (a server for CPUs); with a GPU: run in NVIDIA's "
    "image nvcr.io/nvidia/tritonserver with segstream installed"
)
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class Installation:
    """``stub`` is the program that runs Python models, ``libraries`` what the loader must find."""

    server: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...] = ()
    caches: Path | None = None

    @classmethod
    def find(cls) -> "Installation":
        """The server of the wheel ``nvidia-pytriton``, else one on the PATH or in /opt.

        Raises UnavailableError, which says how to get one, or what keeps it from starting.
        """
        found = _of_wheel() or _of_system()
        if found is None:
            raise UnavailableError(HOW_TO_GET_ONE)
        found._check_stub()
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The server's environment: its stubs run the Python of this process."""
        own = {k: v for k, v in os.environ.items() if k != "PYTHONHOME"}
        libraries = (*self.libraries, sysconfig.get_config_var("LIBDIR"))
        inherited = own.get("LD_LIBRARY_PATH")
        return own | {
            "PATH": f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join(
                [*map(str, libraries), *([inherited] if inherited else [])]
            ),
        }

    def copy_python_backend(self, folder: Path) -> None:
        """Put the Python backend into a folder of backends; links are refused by the server."""
        target = folder / "python"
        target.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(self.python_backend / name, target)
        shutil.copy(self.stub, target)
        (target / _STUB).chmod(0o755)

    def _check_stub(self) -> None:
        """The server would wait for ever for a stub that cannot start."""
        if not self.stub.is_file():
            raise UnavailableError(f"{self.server} has no stub for Python {_PYTHON}")
        listed = subprocess.run(
            ["ldd", self.stub], env=self.environment, capture_output=True, text=True, check=False
        ).stdout
        missing = [line.split()[0] for line in listed.splitlines() if "not found" in line]
        if missing:
            raise UnavailableError(
                f"Triton's stub for Python {_PYTHON} lacks {', '.join(missing)}: use a Python "
                "that was built with --enable-shared, or install Debian's libpython"
            )


def _of_wheel() -> Installation | None:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parent.parent
    root = site / "pytriton" / "tritonserver"
    if not (root / "bin" / "tritonserver").is_file():
        return None
    return Installation(
        root / "bin" / "tritonserver",
        root / "backends" / "python",
        root / "python_backend_stubs" / _PYTHON / _STUB,
        (site / "nvidia_pytriton.libs",),
        root / "caches",
    )


def _of_system() -> Installation | None:
    server = shutil.which("tritonserver", path=f"{os.environ.get('PATH')}:/opt/tritonserver/bin")
    if server is None:
        return None
    root = Path(server).resolve().parent.parent
    backend = root / "backends" / "python"
    return Installation(Path(server), backend, backend / _STUB)
