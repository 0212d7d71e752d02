"""The study: all solvers on the embedded worlds, at equal calls and at equal evaluations."""
