"""epd: learned parallel ODE solvers for diffusion and flow models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .accelerators.accelerate import accelerate, decelerate, measure, summary
    from .accelerators.contract import Accelerator
    from .accelerators.first_block import FirstBlock
    from .accelerators.fitting import fit_teacache, step_similarity
    from .accelerators.ilf import ILF
    from .accelerators.moment import Moment
    from .accelerators.native import Native
    from .accelerators.rapid3 import RAPID3, Policy
    from .accelerators.ras import RAS
    from .accelerators.regions import falling_ratios
    from .accelerators.rehash import Rehash, key_steps
    from .accelerators.reuse import Reuse
    from .accelerators.slices import Slices
    from .accelerators.teacache import TeaCache
    from .denoisers.digits import digits_pipeline
    from .denoisers.mixture import GaussianMixture
    from .denoisers.networks import NetworkDenoiser
    from .denoisers.noise import unit_noise
    from .denoisers.own_model import own_model
    from .denoisers.protocol import Denoiser, Model
    from .denoisers.rows import limit_rows
    from .denoisers.shapes_32 import shapes_32_pipeline
    from .distill.config import DistillConfig
    from .distill.feedback_config import FeedbackConfig
    from .distill.feedback_run import distill_feedback
    from .distill.learn import distill, distill_each
    from .evaluation.compare import compare
    from .evaluation.evaluate import evaluate
    from .evaluation.inspection import inspect
    from .evaluation.tune import tune
    from .evaluation.tune_config import TuneConfig
    from .pipelines.denoiser import from_pipeline
    from .pipelines.enable import disable, enable, on_states
    from .pipelines.find import find_table
    from .pipelines.kdiffusion import sample_epd, sigmas_of
    from .pipelines.scheduler import EPDScheduler
    from .pipelines.shapes import shapes_pipeline
    from .pipelines.sharing import load_learned, save_learned
    from .rl.acceleration_config import AccelerationConfig
    from .rl.config import RefineConfig
    from .rl.learn import refine, refine_acceleration
    from .rl.policy_file import load_policy
    from .rl.safe_schedule import SafeSchedule, ScheduleSpace, ScheduleTuner
    from .rl.stepmix import Mixture, NotCertified, eps_mix, offline_baseline, step_mix
    from .rl.stepmix_episodes import play_episodes
    from .rl.tabular import TabularMDP
    from .rl.tabular_bounds import ExplorationBonus, TabularKnowledge
    from .solvers import rules, schedules
    from .solvers.answers import batched, serial, slope, streams
    from .solvers.auto import auto
    from .solvers.capture import capture
    from .solvers.graphs import CompiledGraph
    from .solvers.named import named_table, table_names
    from .solvers.sharded import sharded
    from .solvers.solve import solve, trajectory
    from .solvers.table import Provenance, Table, TableError
    from .solvers.walk import Ask, Restart, Rule, Site, State, plan, walk

# Public name -> where it lives. Loaded when first asked for, so that `epd --help` does not wait for torch.
_HOMES = {
    "digits_pipeline": "denoisers.digits",
    "GaussianMixture": "denoisers.mixture",
    "NetworkDenoiser": "denoisers.networks",
    "unit_noise": "denoisers.noise",
    "own_model": "denoisers.own_model",
    "Denoiser": "denoisers.protocol",
    "Model": "denoisers.protocol",
    "limit_rows": "denoisers.rows",
    "shapes_32_pipeline": "denoisers.shapes_32",
    "from_pipeline": "pipelines.denoiser",
    "enable": "pipelines.enable",
    "disable": "pipelines.enable",
    "on_states": "pipelines.enable",
    "accelerate": "accelerators.accelerate",
    "decelerate": "accelerators.accelerate",
    "measure": "accelerators.accelerate",
    "summary": "accelerators.accelerate",
    "Accelerator": "accelerators.contract",
    "ILF": "accelerators.ilf",
    "FirstBlock": "accelerators.first_block",
    "fit_teacache": "accelerators.fitting",
    "step_similarity": "accelerators.fitting",
    "Moment": "accelerators.moment",
    "Native": "accelerators.native",
    "Rehash": "accelerators.rehash",
    "key_steps": "accelerators.rehash",
    "RAPID3": "accelerators.rapid3",
    "Policy": "accelerators.rapid3",
    "RAS": "accelerators.ras",
    "falling_ratios": "accelerators.regions",
    "Reuse": "accelerators.reuse",
    "TeaCache": "accelerators.teacache",
    "Slices": "accelerators.slices",
    "EPDScheduler": "pipelines.scheduler",
    "shapes_pipeline": "pipelines.shapes",
    "find_table": "pipelines.find",
    "sample_epd": "pipelines.kdiffusion",
    "sigmas_of": "pipelines.kdiffusion",
    "save_learned": "pipelines.sharing",
    "load_learned": "pipelines.sharing",
    "Ask": "solvers.walk",
    "Restart": "solvers.walk",
    "Rule": "solvers.walk",
    "Site": "solvers.walk",
    "State": "solvers.walk",
    "plan": "solvers.walk",
    "walk": "solvers.walk",
    "batched": "solvers.answers",
    "serial": "solvers.answers",
    "slope": "solvers.answers",
    "streams": "solvers.answers",
    "auto": "solvers.auto",
    "capture": "solvers.capture",
    "CompiledGraph": "solvers.graphs",
    "sharded": "solvers.sharded",
    "solve": "solvers.solve",
    "trajectory": "solvers.solve",
    "named_table": "solvers.named",
    "table_names": "solvers.named",
    "Provenance": "solvers.table",
    "Table": "solvers.table",
    "TableError": "solvers.table",
    "DistillConfig": "distill.config",
    "FeedbackConfig": "distill.feedback_config",
    "distill_feedback": "distill.feedback_run",
    "distill": "distill.learn",
    "distill_each": "distill.learn",
    "AccelerationConfig": "rl.acceleration_config",
    "RefineConfig": "rl.config",
    "load_policy": "rl.policy_file",
    "refine": "rl.learn",
    "refine_acceleration": "rl.learn",
    "SafeSchedule": "rl.safe_schedule",
    "ScheduleSpace": "rl.safe_schedule",
    "ScheduleTuner": "rl.safe_schedule",
    "Mixture": "rl.stepmix",
    "NotCertified": "rl.stepmix",
    "eps_mix": "rl.stepmix",
    "offline_baseline": "rl.stepmix",
    "step_mix": "rl.stepmix",
    "play_episodes": "rl.stepmix_episodes",
    "TabularMDP": "rl.tabular",
    "ExplorationBonus": "rl.tabular_bounds",
    "TabularKnowledge": "rl.tabular_bounds",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "inspect": "evaluation.inspection",
    "TuneConfig": "evaluation.tune_config",
    "tune": "evaluation.tune",
}
_ROOMS = (
    "formats", "denoisers", "solvers", "pipelines", "accelerators", "runs", "distill", "rl", "evaluation", "commands",
    "experiments",
)  # fmt: skip
_MODULES = {
    "rules": "solvers.rules",
    "schedules": "solvers.schedules",
    **{room: room for room in _ROOMS if room not in _HOMES},
}
# `epd.distill` is the function, as `epd.compare` is. Python binds a subpackage to its parent once, when it is first
# imported: importing the room (an empty file) here and forgetting that name keeps `from epd.distill.plan import ...`
# from putting the room in the function's place later.
importlib.import_module(f"{__name__}.distill")
del globals()["distill"]

__all__ = [*_HOMES, "rules", "schedules"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: Any = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        if name in _ROOMS:
            # `import epd.distill.run as run` looks its last part up in sys.modules, below the name of this.
            value.__name__ = f"{__name__}.{name}"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
