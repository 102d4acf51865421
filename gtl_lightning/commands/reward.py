"""`gtl reward`: texts of the source denoiser with more of what is wanted, by guidance, by training, by picking."""

from __future__ import annotations

from typing import Annotated

import typer

from gtl_lightning.workspace.opening import open_params

app = typer.Typer()


@app.command()
def reward(
    reward: Annotated[str | None, typer.Option(help="length or readability")] = None,
    term: Annotated[str | None, typer.Option(help="a word: the reward is its share of the words")] = None,
    module: Annotated[
        str | None, typer.Option(help="FILE:FUNCTION of your own, list of texts -> numbers; the file is run")
    ] = None,
    beta: Annotated[
        list[float],
        typer.Option(help="temperature in standard deviations of the reward, repeatable", show_default="0.5, 1, 2"),
    ] = [],  # noqa: B006 - typer reads it
    best_of: Annotated[
        list[int], typer.Option(help="texts of which the best is kept, repeatable", show_default="2, 4, 8")
    ] = [],  # noqa: B006 - typer reads it
    samples: Annotated[int, typer.Option(help="texts of the denoiser to learn from, and to pick from")] = 1024,
    count: Annotated[int, typer.Option(help="texts that each way is measured on")] = 128,
    seed: Annotated[int, typer.Option(help="of samples and trainings")] = 0,
) -> None:
    """Reward against drift of the source denoiser; writes reports/reward.json, reward.md and a figure."""
    from gtl_lightning.workspace.rewards import reward_of

    wanted = reward_of(reward, term, module)
    params = open_params()
    from gtl_lightning.stages import reward as stage

    name = reward or (f"share of {term}" if term else str(module))
    asked = stage.RewardRequest(
        name, wanted, tuple(beta) or (0.5, 1.0, 2.0), tuple(best_of) or (2, 4, 8), samples, count, seed
    )
    stage.measure_reward(params, asked)
