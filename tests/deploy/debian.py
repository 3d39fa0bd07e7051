"""What Debian's archive gives for containers: Compose, Buildx, and root file systems."""

import subprocess
from pathlib import Path

# Compose v2 came with the release after that of the engine; its packages need glibc only.
_PLUGINS_RELEASE = "trixie"
_PLUGINS = ("docker-compose", "docker-buildx")
_IMAGES_RELEASE = "bookworm"
_LEFT_OUT = ("doc", "man", "locale", "info")
_NUM_TOLD_LINES = 15

ENGINE_PACKAGES = ("docker.io", "iproute2", "iptables", "mmdebstrap")
"""An engine, its network, and what makes root file systems."""


def run(*command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    """The output of a command; RuntimeError with its last words if it fails."""
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, input=stdin
    )
    if result.returncode:
        told = "\n".join((result.stdout + result.stderr).splitlines()[-_NUM_TOLD_LINES:])
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {result.returncode}:\n{told}")
    return result.stdout


def install(*packages: str) -> None:
    """Install packages of this machine's own release. Needs root."""
    run("apt-get", "update", "-qq")
    run(
        *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"),
        *("--no-install-recommends", *packages),
    )


def fetch_plugins(folder: Path) -> Path:
    """A configuration folder of the Docker client with Compose v2 and Buildx."""
    configuration = folder / "client"
    plugins = configuration / "cli-plugins"
    if plugins.is_dir():
        return configuration
    apt = folder / "apt"
    for path in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial"):
        path.mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb [signed-by={keyring}] {_mirror()} {_PLUGINS_RELEASE} main\n")
    options = [
        *(f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=/nonexistent"),
        *(f"-oDir::State::Lists={apt / 'lists'}", f"-oDir::Cache={apt / 'cache'}"),
    ]
    run("apt-get", *options, "update")
    run("apt-get", *options, "download", *_PLUGINS, cwd=apt)
    for package in apt.glob("*.deb"):
        run("dpkg", "-x", package, apt / "root")
    (apt / "root" / "usr/libexec/docker/cli-plugins").rename(_made(configuration) / "cli-plugins")
    return configuration


def make_root(archive: Path, packages: tuple[str, ...]) -> None:
    """A tar archive of a small Debian with these packages. Needs root."""
    if archive.is_file():
        return
    partial = archive.with_suffix(".partial.tar")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    run(
        *("mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(packages)}"),
        *excluded,
        *(_IMAGES_RELEASE, partial, _mirror()),
    )
    partial.rename(archive)


def _mirror() -> str:
    """The mirror that apt of this machine uses."""
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI)").splitlines()
    return next(target for target in targets if "security" not in target)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
