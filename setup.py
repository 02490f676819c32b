"""Packaging of recbole-tpad.

`properties/` (the YAML presets) is a top-level folder of the checkout, as in RecBole, but is
installed inside the package: a top-level `properties` in site-packages would belong to nobody.
An editable install reads the checkout's folder (`recbole_tpad.presets.properties_dir`).
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PRESETS = Path("properties")


def read_version() -> str:
    """Return `__version__` from the package's source, without importing it."""
    source = (ROOT / "recbole_tpad" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('recbole_tpad/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_description() -> str:
    """Return the text of README.md, or an empty string in a tree without one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


class BuildWithPresets(build_py):
    """`build_py` that also copies properties/**/*.yaml to recbole_tpad/properties."""

    def _presets(self) -> list[tuple[str, str]]:
        target = Path(self.build_lib) / "recbole_tpad"
        return [(str(source), str(target / source)) for source in sorted(PRESETS.rglob("*.yaml"))]

    def run(self) -> None:
        """Build as usual, then add the presets unless the install is editable."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for source, target in self._presets():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return every file built, presets included."""
        presets = [] if getattr(self, "editable_mode", False) else self._presets()
        return [*super().get_outputs(include_bytecode), *(target for _, target in presets)]

    def get_source_files(self) -> list[str]:
        """Return every source file, presets included (used for the source distribution)."""
        return [*super().get_source_files(), *(source for source, _ in self._presets())]


OPENAI = ["openai[aiohttp]>=3,<4", "uvloop>=0.21"]
SENTENCE_TRANSFORMERS = ["sentence-transformers>=5,<7"]
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "hyperopt>=0.2.7",
    *OPENAI,
    *SENTENCE_TRANSFORMERS,
]
DEV = [*TEST, "ruff>=0.9", "mypy>=1.14", "types-PyYAML"]

setup(
    name="recbole-tpad",
    version=read_version(),
    description="Frozen multimodal item embeddings for RecBole's sequential recommenders",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["recbole_tpad", "recbole_tpad.*", "dataset_converters", "dataset_converters.*"]
    ),
    package_data={"recbole_tpad": ["py.typed"], "dataset_converters": ["py.typed"]},
    cmdclass={"build_py": BuildWithPresets},
    install_requires=[
        "torch>=2.6",
        # The bridge is written against 1.2.1. Its dependency ray<=2.6.3 has no wheel for Python
        # 3.12+: there, install recbole and this package with --no-deps and the rest by hand.
        "recbole==1.2.1",
        "transformers>=5,<6",
        "peft>=0.18",
        "pillow>=10.3",
        # RecBole relies on behaviour that pandas 3 changed (token_seq features, padding).
        "pandas>=2.1,<3",
        "duckdb>=1.1",
        "isal>=1.7",
        "numpy>=1.26",
        "scipy>=1.11",
        "scikit-learn>=1.4",
        "safetensors>=0.4.3",
        # Lemmas of keywords; pure Python, its dictionaries are in the wheel.
        "simplemma>=2,<3",
        "tokenizers>=0.22",
        "pyyaml>=6",
        "tensorboard>=2.5",
        "tqdm>=4.66",
        # read1() of its responses; RecBole's own dependencies bring it, too.
        "urllib3>=2.2",
    ],
    extras_require={
        "openai": OPENAI,
        "sentence-transformers": SENTENCE_TRANSFORMERS,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["recbole-tpad=recbole_tpad.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
