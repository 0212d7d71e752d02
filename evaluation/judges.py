"""How samples of the embedded models are judged beside their RMSE: a classifier's features, its verdict, the data."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from ..denoisers.digits import EMBEDDED, digits_classifier, digits_data
from .metrics import Features


class JudgeArguments(TypedDict):
    """What `compare` can be given for a model, by its argument names; none where there is none."""

    features: Features | None
    classifier: Features | None
    data: Tensor | None


def judges_of(name: str) -> JudgeArguments:
    """The judges of a model: the digits' own classifier for the embedded models, nobody for others."""
    if name not in EMBEDDED:
        return JudgeArguments(features=None, classifier=None, data=None)
    network = digits_classifier()
    return JudgeArguments(
        features=lambda x: network.features(x.float()),
        classifier=lambda x: network(x.float()),
        data=digits_data()[0],
    )
