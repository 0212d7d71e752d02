"""Stock schedulers' configurations: which class one belongs to, which of its keys count, and that class to ask.

The noise levels of a configuration are never recomputed here. The stock class itself is built from it and asked, so
that every key that this class obeys is obeyed; what it could not answer for is refused by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import diffusers

Config = Mapping[str, Any]
PathFamily = Literal["vp", "flow", "edm", "continuous"]

FAMILIES: Mapping[str, PathFamily] = {
    "EulerDiscreteScheduler": "vp",
    "EulerAncestralDiscreteScheduler": "vp",
    "HeunDiscreteScheduler": "vp",
    "KDPM2DiscreteScheduler": "vp",
    "KDPM2AncestralDiscreteScheduler": "vp",
    "LMSDiscreteScheduler": "vp",
    "DDIMScheduler": "vp",
    "DDIMParallelScheduler": "vp",
    "DDPMScheduler": "vp",
    "DDPMParallelScheduler": "vp",
    "PNDMScheduler": "vp",
    "CogVideoXDDIMScheduler": "vp",
    "CogVideoXDPMScheduler": "vp",
    "DPMSolverMultistepScheduler": "vp",
    "DPMSolverSinglestepScheduler": "vp",
    "DEISMultistepScheduler": "vp",
    "SASolverScheduler": "vp",
    "UniPCMultistepScheduler": "vp",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
}

TWINS: Mapping[str, str] = {  # whose noise levels another class has, without their oddities: repeats, numpy's warnings
    "PNDMScheduler": "DDIMScheduler",
    "LMSDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "EulerDiscreteScheduler",
}

SCALED_NOISE = frozenset({  # whose first latents are sigma noise, except with leading spacing; the others' are noise
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
})  # fmt: skip

_ONE_STEP = "its network was distilled to jump, so its output is no slope of an ODE"
_DISCRETE = "it samples tokens, not states"
_OWN_TIME = "its network is told a time of its own, which is not supported"
FOREIGN: Mapping[str, str] = {  # what they are, for those that somebody may well try
    "LCMScheduler": _ONE_STEP,
    "TCDScheduler": _ONE_STEP,
    "FlowMatchLCMScheduler": _ONE_STEP,
    "FlowMapEulerDiscreteScheduler": _ONE_STEP,
    "CMStochasticIterativeScheduler": _ONE_STEP,
    "ConsistencyDecoderScheduler": _ONE_STEP,
    "SCMScheduler": _ONE_STEP,
    "HeliosDMDScheduler": _ONE_STEP,
    "PiflowScheduler": _ONE_STEP,
    "AmusedScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "DDPMWuerstchenScheduler": _OWN_TIME,
    "CosineDPMSolverMultistepScheduler": _OWN_TIME,
    "IPNDMScheduler": _OWN_TIME,
    "KarrasVeScheduler": _OWN_TIME,
    "ScoreSdeVeScheduler": _OWN_TIME,
    "ScoreSdeVpScheduler": _OWN_TIME,
    "MiniMaxH3Scheduler": _OWN_TIME,
    "RFD4ProteinaScheduler": _OWN_TIME,
    "HeliosScheduler": "it changes the resolution on its way",
    "RePaintScheduler": "it jumps back in time",
    "DDIMInverseScheduler": "its noise levels rise",
    "DPMSolverMultistepInverseScheduler": "its noise levels rise",
    "LTXEulerAncestralRFScheduler": "its noise levels are another scheduler's",
    "DPMSolverSDEScheduler": "its noise levels were not compared",
    "UnCLIPScheduler": "diffusers replaced it by DDPMScheduler",
}

OBEYED = frozenset({  # the stock class makes its noise levels of them; those of the last line are for pipelines' `mu`
    "num_train_timesteps", "timestep_type", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "snr_shift_scale", "prediction_type", "timestep_spacing", "steps_offset",
    "set_alpha_to_one", "interpolation_type",
    "final_sigmas_type", "lambda_min_clipped", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "use_flow_sigmas", "flow_shift",
    "shift", "shift_terminal", "use_dynamic_shifting", "time_shift_type",
    "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
})  # fmt: skip
HARMLESS = frozenset({  # how the stock class steps between its noise levels, which a solver of ours does instead
    "solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0",
    "disable_corrector", "solver_p", "predictor_order", "corrector_order", "tau_func", "skip_prk_steps",
    "stochastic_sampling", "variance_type",
    # Of the predicted picture: a clipped one would not be the ODE's.
    "clip_sample", "clip_sample_range", "sample_max_value", "thresholding", "dynamic_thresholding_ratio",
})  # fmt: skip
UNREAD = frozenset({  # EPDScheduler's own; where its default is its own; checked with the family
    "rule", "rule_order", "table", "unit_variance", "stock_class", "timestep_spacing", "prediction_type",
})  # fmt: skip


@dataclass(frozen=True)
class Stock:
    """A stock scheduler of diffusers that can be asked for its noise levels.

    Args:
        name: of its class.
        family: `vp` (variance preserving), `flow` (rectified), `edm` or `continuous` (v of networks that are told the
            logarithm of the noise level, as SVD's).
        config: all parameters of this class, and no others.
    """

    name: str
    family: PathFamily
    config: Config

    def build(self) -> Any:  # noqa: ANN401 - any scheduler of diffusers
        """A fresh one: `set_timesteps` leaves traces in some of them.

        Raises:
            ValueError: when the class itself does not accept its configuration.
        """
        name = TWINS.get(self.name, self.name)
        values = {key: value for key, value in self.config.items() if key in parameters(name)}
        try:
            return getattr(diffusers, name)(**values)
        except (NotImplementedError, ImportError) as error:
            raise ValueError(f"{self.name} does not accept its own configuration: {error}") from error


@functools.cache
def parameters(name: str) -> Mapping[str, Any]:
    """The parameters of a stock class and their defaults, in their order; empty for a class that diffusers lacks."""
    kind = vars(diffusers).get(name) or getattr(diffusers, name, None)
    if kind is None:
        return {}
    stated = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in stated if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}


def live_config(scheduler: Any) -> dict[str, Any]:  # noqa: ANN401 - any scheduler of diffusers
    """What a live scheduler obeys of its configuration, its class's name first. It may carry along other classes' keys.

    A class of somebody's own is taken for the stock class that it derives from.
    """
    names = [kind.__name__ for kind in type(scheduler).__mro__]
    name = next((n for n in names if n in FAMILIES or n in FOREIGN), names[0])
    own = [key for key in parameters(name) if key in scheduler.config] or list(scheduler.config)
    return {"_class_name": name, **{key: scheduler.config[key] for key in own if key != "_class_name"}}


def class_name(config: Config) -> str:
    """The stock class that a configuration belongs to; empty for a plain dictionary."""
    named = str(config.get("_class_name") or "")
    if next(iter(config), "") == "_class_name" and named != "EPDScheduler":  # a file's keys are sorted
        return named
    # A live scheduler's configuration has the parameters of its class first, in their order, then what it carries
    # along: with this alone FlowMatchEuler(shift=8) that was made from UniPC(flow_shift=3) is told from its converse.
    keys = [key for key in config if not key.startswith("_")]
    kinds = [n for n in (*FAMILIES, *FOREIGN) if len(own := list(parameters(n))) > 1 and keys[: len(own)] == own]
    longest = max((len(parameters(n)) for n in kinds), default=0)
    kinds = [n for n in kinds if len(parameters(n)) == longest]
    if kinds:
        return named if named in kinds else kinds[0]
    return named if named and named != "EPDScheduler" else str(config.get("stock_class") or "")


def completed(config: Config) -> dict[str, Any]:
    """The configuration with the defaults of its own class in place of keys that it lacks, and the class's name.

    Raises:
        ValueError: for a class whose noise levels are not supported.
    """
    name = class_name(config)
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if name:
        _require_supported(name)
        absent = {k: v for k, v in parameters(name).items() if k not in values and v is not inspect.Parameter.empty}
        values = {**values, **absent}
    elif "shift" in values and "prediction_type" not in values:
        values["prediction_type"] = "flow_prediction"
    if FAMILIES.get(name) == "flow":
        values["prediction_type"] = "flow_prediction"
    return {**values, "stock_class": name or None}


def stock_of(config: Config) -> Stock:
    """The stock scheduler that a completed configuration belongs to.

    Raises:
        ValueError: for a class, or a value of a key, whose noise levels are not supported.
    """
    name = config.get("stock_class") or _likely(config)
    _require_supported(name)
    defaults = parameters(name)
    if not config.get("stock_class"):
        _require_read(config, name)
    own = {key: config[key] for key in defaults if config.get(key) is not None}
    for key in own.keys() - OBEYED - HARMLESS:
        if own[key] != defaults[key]:
            raise ValueError(
                f"{key} = {own[key]!r} of {name} is not supported: leave it at {defaults[key]!r} if the model allows it"
            )
    family = FAMILIES[name]
    if own.get("use_flow_sigmas"):
        family = "flow"
        if own["prediction_type"] != "flow_prediction":
            raise ValueError(
                f"use_flow_sigmas with prediction_type = {own['prediction_type']!r}: a flow's is 'flow_prediction'"
            )
    if own.get("timestep_type") == "continuous" and own.get("prediction_type") == "v_prediction":
        family = "continuous"  # with other predictions the stock class means discrete timesteps all the same
    return Stock(name, family, own)


def _require_supported(name: str) -> None:
    if name not in FAMILIES:
        why = FOREIGN.get(name, "it is unknown")
        raise ValueError(
            f"the noise levels of {name} are not supported: {why}; give the scheduler that the network was trained "
            f"with, one of {', '.join(FAMILIES)}"
        )


def _require_read(config: Config, name: str) -> None:
    """No key of a plain dictionary may be dropped; only live schedulers and files carry along what they do not obey."""
    for key in config.keys() - parameters(name).keys() - HARMLESS - UNREAD:
        usual = [None, *(parameters(n)[key] for n in FAMILIES if key in parameters(n))]
        if not key.startswith("_") and config[key] not in usual:
            raise ValueError(
                f"{key} = {config[key]!r} means nothing to {name}, which this configuration reads like: leave it out, "
                "or say whose it is with _class_name"
            )


def _likely(config: Config) -> str:
    """Which stock class has the noise levels that a plain dictionary describes."""
    if config.get("use_flow_sigmas"):
        return "UniPCMultistepScheduler"
    if config.get("prediction_type") == "flow_prediction":
        return "FlowMatchEulerDiscreteScheduler"
    if "sigma_data" in config:
        return "EDMEulerScheduler"
    if "snr_shift_scale" in config:
        return "CogVideoXDDIMScheduler"
    return "EulerDiscreteScheduler" if config.get("set_alpha_to_one", True) else "DDIMScheduler"
