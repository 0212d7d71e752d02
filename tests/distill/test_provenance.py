"""What a learned table says of where it comes from, and that `enable` warns by it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipelines
from helpers.toy_models import toy_config, toy_mixture

import epd
from epd import Provenance
from epd.denoisers.digits import digits
from epd.denoisers.protocol import Model
from epd.denoisers.rows import limit_rows
from epd.distill.parameters import Parameters
from epd.distill.plan import Plan, make_plan
from epd.distill.state import TrainerState
from epd.distill.train import Trainer, distill
from epd.distill.update import Update, table_at
from epd.pipelines.denoiser import from_pipeline
from epd.runs.processes import Workers


def first_table(model: Model, plan: Plan) -> epd.Table:
    """The table that training starts from, with the provenance of one that was learned."""
    vector = Parameters.of(plan.tables[0], plan.learn).start
    none = torch.zeros(2, len(vector), dtype=torch.float64)
    return table_at(model, plan, TrainerState(0, 0, 0, vector, vector, math.inf, 0, 0, 0.0, none))


def updates(cache: Path, table: epd.Table | None = None, **changes: object) -> list[Update]:
    model = toy_mixture()
    return list(distill(model, make_plan(model, toy_config(**changes), table), cache=cache))


def test_what_a_table_starts_from_is_its_parent_measured_or_not(tmp_path: Path) -> None:
    base = make_plan(toy_mixture(), toy_config()).tables[0]
    cited = Provenance(citation="Somebody 2025", prediction="epsilon", resolution=(512, 512), schedule="logsnr")
    table = dataclasses.replace(base, provenance=cited)
    known = updates(tmp_path, table, iterations=2)[-1].table.provenance
    assert known.parent == base.digest and known.citation == "Somebody 2025" and known.schedule == "logsnr"
    assert known.prediction == "epsilon" and known.resolution == (512, 512)  # a mixture knows neither
    without = updates(tmp_path, iterations=2)[-1].table.provenance
    assert without.parent == "" and without.citation == ""


@pytest.mark.parametrize("optimizer", ["soap", "adam", "gauss-newton"])
def test_a_table_on_the_way_carries_its_own_error_or_none(optimizer: str, tmp_path: Path) -> None:
    """Long steps, so that the present numbers are often worse than the best."""
    model = toy_mixture()
    config = toy_config(family="epd", optimizer=optimizer, lr=0.3, iterations=6, screening=3, validate_every=1)
    plan = make_plan(model, config)
    measure = Trainer(model, plan, None, tmp_path, Workers())._validate
    own = []
    for update in distill(model, plan, cache=tmp_path):
        metrics = update.table.provenance.metrics
        if metrics:
            assert metrics == {"validation_rmse": measure(update.state)}
        own.append(bool(metrics))
    assert own[-1] and not all(own)


def test_what_the_model_knows_is_recorded() -> None:
    """Prediction of the embedded network; prediction and pixels of pipelines, behind a row limit, too."""
    cases = [
        (digits(), "v_prediction", ()),
        (limit_rows(from_pipeline(tiny_pipelines.build("sd"), height=32, width=64), 3), "epsilon", (32, 64)),
        (from_pipeline(tiny_pipelines.build("flux"), height=32, width=64), "flow", (32, 64)),
        (from_pipeline(tiny_pipelines.build("ddpm")), "epsilon", (16, 16)),
    ]
    for model, prediction, resolution in cases:
        plan = make_plan(model, toy_config(calls=2, optimizer="gauss-newton"))
        known = first_table(model, plan).provenance
        assert (known.prediction, known.resolution) == (prediction, resolution), model.name


def test_enable_warns_of_other_sizes_and_predictions(tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("sd")
    model = from_pipeline(pipe, prompts=["a"], height=32, width=32, guidance=1.0)
    plan = make_plan(model, toy_config(calls=2, schedule="logsnr"))
    table = first_table(model, plan)
    epd.enable(pipe, table)
    arguments = {"prompt": "a", "guidance_scale": 1.0, "output_type": "latent"}
    pipe(**arguments, height=32, width=32, num_inference_steps=table.depth)
    with pytest.warns(UserWarning, match=r"the picture has \(32, 64\) pixels, but the table was learned at \(32, 32\)"):
        pipe(**arguments, height=32, width=64, num_inference_steps=table.depth)
    other = tiny_pipelines.build("sd")
    other.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.warns(UserWarning, match="learned for prediction type 'epsilon', this network's is 'v_prediction'"):
        epd.enable(other, table)
