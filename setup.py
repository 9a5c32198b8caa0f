"""Packaging of `kit`: a pure-Python wheel with the `kit` command."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "kit" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

DECODERS = ["pylibjpeg>=2.0", "pylibjpeg-libjpeg>=2.1", "pylibjpeg-openjpeg>=2.3"]
NIFTI = ["nibabel>=5.2"]
TEST = [
    *DECODERS,
    *NIFTI,
    "distributed>=2024.4",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.9",
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.5",
    "selenium>=4.20",
    "SimpleITK>=2.4",
    "statsmodels>=0.14.2",
    "tensorboard>=2.17",
]

setup(
    name="kit",
    version=VERSION,
    description="Intracranial hemorrhage on head CT: windows, ResNeXt embeddings, masked LSTM",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["kit", "kit.*"]),
    package_data={"kit": ["py.typed"], "kit.report": ["assets/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0.26",
        "numpy>=1.26",
        "pandas>=2.1",
        "pyarrow>=15",
        "pydicom>=3.0.1",
        "scikit-learn>=1.4",
        "scipy>=1.11.2",
        "matplotlib>=3.8",
        "joblib>=1.3",
        "albumentations>=2.0.8,<3",
        "safetensors>=0.4.3",
        "tqdm>=4.66",
        "opencv-python-headless>=4.9",
        "filelock>=3.13",
        "huggingface_hub>=0.26",
        "kaggle>=2.2",
        "jupytext>=1.16",
        "requests>=2.31",
        "urllib3>=2.2",
        "six>=1.16",  # kaggle uses it without declaring it
    ],
    extras_require={
        "decoders": DECODERS,
        "nifti": NIFTI,
        "test": TEST,
        "dev": [*TEST, "mypy>=1.11", "pdoc>=14", "pre-commit>=3.7", "ruff>=0.6", "uv>=0.4"],
    },
    entry_points={"console_scripts": ["kit = kit.__main__:main"]},
)
