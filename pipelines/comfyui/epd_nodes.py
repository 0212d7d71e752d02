"""ComfyUI: learned solvers as a SAMPLER with its SIGMAS, for the node `SamplerCustom` and its relatives.

Install: `pip install epd` in ComfyUI's Python, then copy or link this folder into `ComfyUI/custom_nodes`. The model
must be of the kind that the table was learned for; partial denoising goes through ComfyUI's `SplitSigmas`.
"""

from __future__ import annotations

from typing import Any, ClassVar

# ComfyUI loads this file by its path, so there is no package to be relative to.
from epd.pipelines.find import find_table
from epd.pipelines.kdiffusion import sample_epd, sigmas_of
from epd.solvers.named import table_names
from epd.solvers.table import Table


def _ksampler(table: Table, parallel: bool) -> Any:  # noqa: ANN401 - ComfyUI's class
    from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]

    return KSAMPLER(sample_epd, extra_options={"table": table, "parallel": parallel})


class EPDNamedTable:
    """A published table, chosen from a list."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SAMPLER", "SIGMAS")
    FUNCTION: ClassVar[str] = "load"
    CATEGORY: ClassVar[str] = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"table": (list(table_names()),), "parallel": ("BOOLEAN", {"default": True})}}

    def load(self, table: str, parallel: bool) -> tuple[Any, Any]:
        """(SAMPLER, SIGMAS)."""
        return _ksampler(find_table(table), parallel), sigmas_of(table)


class EPDTableFile:
    """A table that `epd distill` wrote."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SAMPLER", "SIGMAS")
    FUNCTION: ClassVar[str] = "load"
    CATEGORY: ClassVar[str] = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        path = ("STRING", {"default": "solver.json"})
        return {"required": {"path": path, "parallel": ("BOOLEAN", {"default": True})}}

    def load(self, path: str, parallel: bool) -> tuple[Any, Any]:
        """(SAMPLER, SIGMAS)."""
        table = find_table(path)
        return _ksampler(table, parallel), sigmas_of(table)


NODE_CLASS_MAPPINGS = {"EPDNamedTable": EPDNamedTable, "EPDTableFile": EPDTableFile}
NODE_DISPLAY_NAME_MAPPINGS = {"EPDNamedTable": "EPD solver (published)", "EPDTableFile": "EPD solver (file)"}
