"""Packaging from `settings.ini`, read with configparser (nbdev's stock file imports pkg_resources, which is gone)."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    # the stage notebooks travel inside the wheel, so that an installed package can run a week
    packages=[*find_packages(include=["sunorecsys", "sunorecsys.*"]), "sunorecsys._nbs"],
    package_dir={"sunorecsys._nbs": "nbs"},
    package_data={"sunorecsys._nbs": ["*.ipynb"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    python_requires=f">={cfg['min_python']}",
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
