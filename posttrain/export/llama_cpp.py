"""Fetch a pinned llama.cpp: its converter, and llama-quantize, built once and cached.

The tree comes from the source archive of llama-cpp-python, from the package index that pip is
configured for. Its hash is checked before anything in it runs. No git, no system packages.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from posttrain.base.errors import ConfigError, ExportError
from posttrain.base.files import sha256
from posttrain.base.paths import ROOT, cache_folder

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = "llama-quantize"
FLAGS = (
    "-GNinja",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1",  # halves the build time; quantisation itself is in C
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_BUILD_NUMBER=0",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP")),
)


def cached_tree() -> Path:
    """The folder for the pinned tree, which may not exist yet."""
    return cache_folder() / f"llama.cpp-{VERSION}"


def find_tree(requested: str | None) -> Path:
    """The llama.cpp tree that the user names, else the pinned one, which is fetched if needed.
    Raises ConfigError if the folder is not one, or the archive is missing or not the pinned one."""
    named = Path(os.path.expanduser(requested)).absolute() if requested else None
    if named and not named.is_file():
        if not (named / CONVERTER).is_file():
            raise ConfigError(f"{named} is not a llama.cpp tree: there is no {CONVERTER} in it")
        return named
    tree = cached_tree()
    with _locked():
        if not (tree / CONVERTER).is_file():
            with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".fetch-") as work:
                _unpack(named or _download(Path(work)), Path(work), tree)
    return tree


def find_quantizer(tree: Path) -> Path:
    """The llama-quantize of a tree. In the pinned tree it is built if it is missing. Raises
    ConfigError if the user's tree does not have it, or there is no C++ compiler, and ExportError if
    the build failed."""
    for folder in (tree, tree / "build" / "bin"):
        if (folder / QUANTIZER).is_file():
            return folder / QUANTIZER
    if tree != cached_tree():
        raise ConfigError(
            f"{tree} has no {QUANTIZER} in it or in build/bin; build it there with: "
            f"cmake -B build && cmake --build build --target {QUANTIZER}"
        )
    with _locked():
        if not (tree / QUANTIZER).is_file():
            _build(tree)
    return tree / QUANTIZER


def run_tool(command: Sequence[str | Path], **variables: str) -> None:
    """Run a tool without standard input, with these environment variables; raises ExportError with
    the end of its output if it failed."""
    result = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **variables},
        cwd=ROOT,
    )
    if result.returncode:
        end = "\n  ".join(result.stdout.strip().splitlines()[-15:])
        raise ExportError(f"{Path(command[0]).name} failed (code {result.returncode}):\n  {end}")


def _locked() -> FileLock:
    """Let one process at a time fetch or build."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(cache_folder() / ".lock")


def _download(work: Path) -> Path:
    """Download the pinned source archive; returns its path. Nothing is compiled."""
    print(f"Fetching llama.cpp (llama-cpp-python {VERSION}, 77 MB, once)")
    pinned = f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}"
    try:
        pip_download([pinned], work, "--no-binary", "llama-cpp-python")
    except ExportError as error:
        raise ConfigError(
            f"llama.cpp cannot be fetched: {error}\n  Without a network, give a llama.cpp tree or "
            f"llama_cpp_python-{VERSION}.tar.gz with --llama-cpp (export.llama_cpp)"
        ) from None
    return work / f"llama_cpp_python-{VERSION}.tar.gz"


def pip_download(pinned: Sequence[str], folder: Path, *options: str) -> None:
    """Download packages, installing none, with pip, which knows this machine's package index.

    `pinned` are lines of a requirements file with their hashes, `options` those of `pip download`.
    Raises ExportError with the end of pip's output if it failed, or a hash differs.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(pinned) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "uv", "tool", "run", "pip"]  # there is none in the environment
    fixed = ["--no-deps", "--require-hashes", "--no-input", *options]
    run_tool([*pip, "download", *fixed, "-r", requirements, "-d", folder])


def _unpack(archive: Path, work: Path, tree: Path) -> None:
    """Unpack the llama.cpp part of the archive, completely or not at all."""
    if sha256(archive) != SHA256:
        raise ConfigError(f"{archive} is not the pinned llama_cpp_python-{VERSION}.tar.gz")
    with tarfile.open(archive) as file:
        members = [member for member in file.getmembers() if member.name.startswith(INSIDE)]
        file.extractall(work, members=members, filter="data")
    shutil.rmtree(tree, ignore_errors=True)
    os.replace(work / INSIDE, tree)


def _build(tree: Path) -> None:
    """Compile llama-quantize with pip's cmake and ninja, then move it into the tree."""
    import cmake
    import ninja

    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            "gguf:q4_k_m needs a C++ compiler to build llama-quantize, and there is none here "
            "(on Debian and Ubuntu: apt install g++). gguf:q8_0, f16 and bf16 need none"
        )
    print("Building llama-quantize (minutes, once)", flush=True)
    path = os.pathsep.join([cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, os.environ.get("PATH", "")])
    program = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".build-") as folder:
        run_tool([program, "-S", tree, "-B", folder, *FLAGS], PATH=path)
        jobs = str(os.cpu_count() or 1)
        run_tool([program, "--build", folder, "-j", jobs, "--target", QUANTIZER], PATH=path)
        os.replace(Path(folder) / "bin" / QUANTIZER, tree / QUANTIZER)
