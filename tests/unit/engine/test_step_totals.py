"""The sums over steps, from which rates and the trip of a token are derived."""

from __future__ import annotations

from edgepp.engine.step_totals import StepTotals


def test_decode_steps_and_prompts_are_summed_apart_and_both_keep_stages_busy() -> None:
    totals = StepTotals(2)
    totals.add_step(64, (0.5, 0.25), (0.0, 0.0), 1.0, decodes=False)
    totals.add_step(1, (0.01, 0.02), (0.001, 0.003), 0.04, decodes=True)
    totals.add_step(1, (0.03, 0.02), (), 0.06, decodes=True)
    totals.add_head(0.005)
    totals.add_tokens(2)
    sums = totals.read()
    assert (sums.tokens, sums.prompt_positions, sums.steps, sums.draws) == (2, 64, 2, 1)
    assert [round(one, 9) for one in sums.busy_s] == [0.54, 0.29]
    assert [round(one, 9) for one in sums.compute_s] == [0.04, 0.04]
    assert sums.queue_s == (0.001, 0.003)
    assert (round(sums.ring_s, 9), sums.head_s) == (0.1, 0.005)
