"""`planish bench loadgen BUNDLE`: MLPerf's LoadGen asks the bundle, in one of its four scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planish import say
from planish.commands_use import device_option
from planish.gate.load_plan import SCENARIOS
from planish.options import data_option, json_option, seconds_option, threads_option

__all__ = ["loadgen"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--scenario",
    type=click.Choice(SCENARIOS, case_sensitive=False),
    default="SingleStream",
    show_default=True,
    help="One after the other; several at once; at random times; all at once.",
)
@data_option("Texts to ask: JSONL, with labels or without, or .txt.")
@click.option("--target-qps", type=float, help="Server: requests a second, on average.")
@click.option("--target-ms", type=float, help="Server: 99 % are answered within it (decoders: have a first token).")
@click.option("--target-token-ms", type=float, help="Server, decoders: the time for each further token, in 99 %.")
@click.option("--samples-per-query", type=int, default=8, show_default=True, help="MultiStream: requests at once.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Most requests in a forward pass.")
@click.option("--new-tokens", type=int, default=16, show_default=True, help="Decoders: most tokens written.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the requests' order and arrival.")
@click.option("--logs", type=click.Path(path_type=Path), help="A new directory for LoadGen's own logs.")
@seconds_option(60.0, "The least time the run takes.")
@device_option
@threads_option
@json_option
def loadgen(bundle: Path, target_ms: float | None, target_token_ms: float | None, as_json: bool, **options: Any) -> int:
    """Let MLPerf's LoadGen ask BUNDLE: exit 0 valid, 1 the promised latency was not kept, 3 too short to say."""
    from planish.gate import loadgen as half

    with say.progress_bar(quiet=as_json) as progress:
        report = half(
            bundle,
            target_seconds=None if target_ms is None else target_ms / 1000,
            target_token_seconds=None if target_token_ms is None else target_token_ms / 1000,
            progress=progress,
            **options,
        )
    result = {"loadgen": report.to_json(), "exit_code": report.exit_code}
    say.answer(result, as_json=as_json, lines=[report.to_markdown()])
    return report.exit_code
