"""epd: learned parallel ODE solvers for diffusion and flow models."""

from .denoisers.mixture import GaussianMixture
from .denoisers.protocol import Denoiser, Model
from .solvers import rules, schedules
from .solvers.loop import Ask, Rule, plan, slope, solve, trajectory
from .solvers.table import Provenance, Table, TableError

__version__ = "0.1.0"
