"""Compiles the kernels of packed students when the package is built; without a compiler the package goes without."""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/limbeck/models/packed")


class CompileKernels(BuildHookInterface):
    """Puts `kernels.so` beside its source, and marks the wheel as made for this machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, where that can be done."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        spec = importlib.util.spec_from_file_location("limbeck_packed_build", folder / "build.py")
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        target = folder / "kernels.so"
        if build.compile_kernels(target):
            build_data["infer_tag"] = True
            build_data["pure_python"] = False
            build_data["artifacts"].append(str(FOLDER / target.name))
