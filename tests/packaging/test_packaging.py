"""The metadata, the pins, and the presets folder in a wheel, an sdist and an editable install."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import recbole_tpad

ROOT = Path(__file__).resolve().parents[2]
PRINT_PRESETS = (
    "import importlib.util, recbole_tpad.presets as p;"
    "print(importlib.util.find_spec('properties'), p.properties_dir(), p.preset_names('model'))"
)


def call(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run a program without stdin and return what it printed; fail with its stderr."""
    done = subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def setup_field(field: str) -> str:
    return call(sys.executable, "setup.py", "--quiet", f"--{field}").strip().splitlines()[-1]


def preset_stems(kind: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "properties" / kind).glob("*.yaml"))


def test_version_and_name_come_from_the_source() -> None:
    assert setup_field("version") == recbole_tpad.__version__
    assert setup_field("name") == "recbole-tpad"
    assert setup_field("license") == "Apache-2.0"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_pin_every_requirement_without_local_versions() -> None:
    pinned = {normal(name) for name in pins()}
    block = (ROOT / "setup.py").read_text()
    required = re.findall(r'^\s+"([a-z-]+)[><=]', block, re.MULTILINE)
    assert {"torch", "recbole", "pandas"} <= set(required)
    assert {normal(name) for name in required} <= pinned
    assert not any("+" in version for version in pins().values())


def test_installed_versions_match_the_pins() -> None:
    """A mismatch means that the pins no longer say what the tests ran with."""
    if metadata.version("torch").partition("+")[0] != pins()["torch"]:
        pytest.skip("not the environment of constraints.txt")
    for name in ("torch", "recbole", "transformers", "peft", "pandas", "numpy", "scipy"):
        assert metadata.version(name).partition("+")[0] == pins()[name], name


def test_makefile_has_no_absolute_path_and_no_console_script() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "CURDIR" not in text
    assert "bin/recbole-tpad" not in text
    for target in ("demo", "test", "slow", "lint", "clean"):
        assert re.search(rf"^{target}:", text, re.MULTILINE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that builds leave the checkout alone."""
    target = tmp_path_factory.mktemp("a path") / "source"
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("recbole_tpad", "dataset_converters", "properties"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for pattern in (
        "setup.py",
        "pyproject.toml",
        "constraints.txt",
        "MANIFEST.in",
        "LICENSE",
        "*.md",
    ):
        for file in ROOT.glob(pattern):
            shutil.copy(file, target)
    return target


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.mark.slow
def test_wheel_carries_the_presets_inside_the_package(source: Path, tmp_path: Path) -> None:
    flags = ("--no-deps", "--no-build-isolation", "--no-index")
    call(*PIP, "wheel", *flags, "-w", tmp_path, source)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "recbole_tpad",
        "dataset_converters",
    }
    assert "recbole_tpad/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)

    site = tmp_path / "site"
    call(*PIP, "install", "--no-deps", "--no-index", "--target", site, wheel)
    code = f"import sys; sys.path.insert(0, {str(site)!r});{PRINT_PRESETS}"
    printed = call(sys.executable, "-c", code, cwd=tmp_path)
    assert str(site / "recbole_tpad" / "properties") in printed
    assert str(preset_stems("model")) in printed
    assert printed.startswith("None ")


@pytest.mark.slow
def test_editable_install_reads_the_checkout(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "v env"
    venv.create(place, with_pip=True, system_site_packages=False)
    python = place / "bin" / "python"
    site = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    for old in site.glob("setuptools*"):
        shutil.rmtree(old)
    for package in ("setuptools", "yaml"):
        # Borrowed from the environment that runs the tests: no package index is needed.
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        (site / package).symlink_to(Path(spec.origin).parent)
    info = Path(str(metadata.distribution("setuptools").locate_file("")))
    for folder in info.glob("setuptools-*.dist-info"):
        (site / folder.name).symlink_to(folder)
    flags = ("--no-deps", "--no-build-isolation", "--no-index")
    call(python, "-m", "pip", "--quiet", "install", *flags, "-e", source)
    printed = call(python, "-c", PRINT_PRESETS, cwd=tmp_path)
    assert printed.startswith("None ")
    assert str(source / "properties") in printed
    assert str(preset_stems("model")) in printed


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(source: Path, tmp_path: Path) -> None:
    call(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=source)
    archive = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "constraints.txt", "setup.py"} <= names
    presets = {f"properties/model/{stem}.yaml" for stem in preset_stems("model")}
    assert presets <= names
    flags = ("--no-deps", "--no-build-isolation", "--no-index")
    call(*PIP, "wheel", *flags, "-w", tmp_path, archive)
    built = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"recbole_tpad/{name}" for name in presets} <= set(built)
