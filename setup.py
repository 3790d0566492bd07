"""Packaging of trpo_tf: ranges of what it needs; requirements.lock pins one set that was tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "trpo_tf/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="trpo_tf",
    version=VERSION,
    description="Trust Region Policy Optimization on TensorFlow 2 and Keras 3, exported as SavedModels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["trpo_tf", "trpo_tf.*"]),
    package_data={"trpo_tf": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "envpool>=1.2.5; sys_platform == 'linux' or (sys_platform == 'darwin' and platform_machine == 'arm64') "
        "or (sys_platform == 'win32' and platform_machine == 'AMD64')",  # where it has wheels
        "filelock>=3.20.3",  # the first that opens no lock through a symbolic link
        "gymnasium[mujoco,classic-control]>=1.2",
        "keras>=3.13.2",
        "matplotlib>=3.8",
        "numpy>=2.0",
        "rich>=13.8",
        "safetensors>=0.5",
        "tensorboard>=2.20",
        "tensorflow>=2.20",
        "tensorflow-probability>=0.25",
        "tf-keras>=2.20",
        "threadpoolctl>=3.5",
    ],
    extras_require={
        "atari": ["ale-py>=0.11", "opencv-python-headless>=4.10"],  # EnvPool has Atari without it
        "benchmarks": ["scipy>=1.15"],  # benchmarks/curves.py
        "box2d": ["gymnasium[box2d]>=1.2"],
        "cma": ["cma>=4.0"],  # --algorithm=cma
        "ray": ["ray>=2.55,<3"],  # rollout workers; the core of it, without its own extras
        "serving": ["aiohttp>=3.10", "tensorflow-serving-api>=2.20"],
        "video": ["moviepy>=2.0"],
        "dev": ["mypy>=1.13", "pre-commit>=4.0", "pytest>=8.0", "pytest-xdist>=3.6", "pyyaml>=6.0", "ruff>=0.12"],
    },
)
