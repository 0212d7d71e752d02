"""The study: every solver on three worlds, what its parts are worth, and where a table may be used.

    python -m epd.experiments.study           # what is missing, on two cores, what matters most first
    python -m epd.experiments.study --print   # the tables of docs/study.md of what is there
    python -m epd.experiments.study --draw    # docs/study_*.png, likewise
    python -m epd.experiments.study --only digits-exact,dense-1,,0 ablations   # SUBJECT,FAMILY,CALLS,SEED

A cell is a training run and its measurement on fresh noise, all hand-made solvers at one count of calls, or a table
that is measured on another world than it was learned on. It lies in results/study/SUBJECT/, and is written when it is
done; a training run is written once its table is learned, too. The same command goes on with what is missing, or was
made with other settings. Cells that share a teacher find it in the folder of `--work`, which may be deleted. Each says
how many seconds of the processor it took, so that the whole can be held against its hour on two cores. Hand-made
solvers are in their best variant on their best schedule, chosen on the first of the samples that they are measured on.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cells_command import cells_command
from .cells import cells
from .make import make
from .page import FOLDER, printed
from .pictures import drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints or draws."""
    return cells_command(argv, __doc__, "SUBJECT,FAMILY,CALLS,SEED", FOLDER, cells, make, printed, drawn, processes=2)



if __name__ == "__main__":
    raise SystemExit(main())
