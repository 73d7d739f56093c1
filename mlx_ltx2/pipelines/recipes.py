"""Pipeline name -> recipe: a function of the filled request and the model's card that returns a Plan."""

from __future__ import annotations

from collections.abc import Callable

from mlx_ltx2.pipelines import distilled, extend, ic_lora, one_stage, retake, text_to_audio, two_stage
from mlx_ltx2.pipelines.parts import ModelCard
from mlx_ltx2.pipelines.plan import Plan
from mlx_ltx2.pipelines.request import Filled

Recipe = Callable[[Filled, ModelCard], Plan]

RECIPES: dict[str, Recipe] = {
    "distilled": distilled.recipe,
    "one-stage": one_stage.recipe,
    "two-stage": two_stage.recipe,
    "two-stage-hq": two_stage.recipe,
    "keyframes": two_stage.recipe,
    "ic-lora": ic_lora.recipe,
    "text-to-audio": text_to_audio.recipe,
    "retake": retake.recipe,
    "extend": extend.recipe,
}
