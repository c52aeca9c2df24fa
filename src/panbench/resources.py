"""Where the kernels, configs and baselines are: at the root of a checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from panbench.errors import UserError

_PACKAGE = Path(__file__).resolve().parent

Asset = Literal["csrc", "configs", "baselines"]


def asset(name: Asset) -> Path:
    """Folder of one kind of asset.

    Raises:
        UserError: if neither a checkout nor the wheel has it.
    """
    installed = _PACKAGE / "_assets" / name
    checkout = _PACKAGE.parents[1] / name
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise UserError(f"{name}/ is neither in {installed.parent} nor in {checkout.parent}; reinstall panbench")


def find_config(path: str) -> Path:
    """A config file as the user named it: from the working folder, else from the configs that panbench ships.

    ``configs/ligs_scannet.yaml`` and ``ligs_scannet.yaml`` both name the shipped file when there is none here.

    Raises:
        UserError: if there is no such file; names the shipped configs.
    """
    given = Path(path)
    if given.is_file():
        return given
    if not given.is_absolute():
        parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
        shipped = asset("configs").joinpath(*parts)
        if shipped.is_file():
            return shipped
    known = ", ".join(sorted(f"configs/{p.name}" for p in asset("configs").glob("*.yaml")))
    raise UserError(f"there is no config file {path}; shipped with panbench: {known}")
