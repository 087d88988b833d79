"""Entry point of a stage process: one layer range, one compute thread, one control thread; or of a drafting process.

The process reads its configuration from the first line of standard input, later lines admit keys, and the end of the
input ends the process: a stage process never outlives its node. It reports on standard output, one JSON object per
line. A stage knows nothing about requests, prompts or other nodes' names.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import zmq

from edgepp import backend
from edgepp.backend.base import StageModel
from edgepp.child_process import read_configuration
from edgepp.error_boundary import explained
from edgepp.errors import PeerLost
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.output_streams import hold_errors, release_outputs
from edgepp.stage_process.compute_thread import ComputeThread
from edgepp.stage_process.config import RANK_LOST_STATUS, RankConfig, StageConfig
from edgepp.stage_process.control_thread import ControlThread
from edgepp.stage_process.draft_process import serve_drafts
from edgepp.stage_process.first_rank import FirstRank
from edgepp.stage_process.greeting_reply import welcome_of
from edgepp.stage_process.loading import load_head, load_layers, open_layers, options_of, report_progress
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageConnector
from edgepp.stage_process.other_rank import follow
from edgepp.stage_process.output_head import WholeHead
from edgepp.stage_process.process_life import is_ready, report_ready, watch_parent
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.rank_links import RankLost
from edgepp.stage_process.rank_process import join_ranks, load_rank
from edgepp.stage_process.reports import report
from edgepp.stage_process.speed_probe import measure_speed, warm_up
from edgepp.stage_process.split_head import SplitHead
from edgepp.structured_log import configure, name_process
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES, max_data_frame_bytes
from edgepp.wire.messages.control import Welcome
from edgepp.wire.security import Gate, KeyPair
from edgepp.wire.transport import Listener

log = logging.getLogger("edgepp.stage")
_MAX_QUEUED_ANSWERS = 128
"""Results and echoes queued for one slow peer; more than a ring has steps under way."""


def _end_with_rank(lost: PeerLost) -> None:
    """End the process, as the ranks of a stage end together; before the process is ready, its parent is told."""
    if is_ready():
        log.error("%s; this stage process ends too", lost)
        release_outputs()
        os._exit(RANK_LOST_STATUS + lost.rank if isinstance(lost, RankLost) else 1)
    raise lost


def _listen(
    context: zmq.Context[zmq.Socket[bytes]], listen: Address, hidden_size: int, keys: KeyPair | None
) -> tuple[Listener, Listener]:
    """Control and data sockets: on the given port and the next one, or for port 0 on any free ports."""
    control = Listener(context, listen, MAX_CONTROL_FRAME_BYTES, keys)
    data_port = listen.port + 1 if listen.port else 0
    data = Listener(
        context, Address(listen.host, data_port), max_data_frame_bytes(hidden_size), keys, _MAX_QUEUED_ANSWERS
    )
    return control, data


def serve(config: StageConfig) -> None:
    """Load the layers, report ``ready``, and run until standard input ends.

    A process that is a rank joins the others first, and unless it is rank 0, it follows rank 0 and has no port.

    Raises:
        EdgeppError: The layers cannot be loaded, the address is taken, or another rank is gone.
    """
    started_s = time.perf_counter()
    checkpoint = open_layers(config)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit(config.admitted(config.admit))
    if config.rank is not None:
        _serve_rank(config, config.rank, checkpoint, context, gate, started_s)
    else:
        model, chosen = load_layers(config, checkpoint)
        head = WholeHead(load_head(chosen, config, checkpoint)) if config.head else None
        welcome = welcome_of(config, checkpoint, model, chosen.name)
        del checkpoint  # which unmaps its files
        _serve_stage(config, model, head, welcome, context, gate, started_s)
    gate.close()
    context.term()


def _serve_rank(
    config: StageConfig,
    rank: RankConfig,
    checkpoint: Checkpoint,
    context: zmq.Context[zmq.Socket[bytes]],
    gate: Gate,
    started_s: float,
) -> None:
    """Join the other ranks, load a part of the layers, and serve with them until standard input ends."""
    group = join_ranks(config, rank, checkpoint, context)
    chosen = backend.choose(config.backend, checkpoint)
    shares = share_out(checkpoint.settings, rank.weights)
    part, head = load_rank(
        chosen, checkpoint, config.layers, options_of(config), shares, group, report_progress, with_head=config.head
    )
    if group.rank:
        welcome = welcome_of(config, checkpoint, part, chosen.name)
        _follow(config, part, head, welcome, group, gate, started_s)
    else:
        kv_heads = [len(share.kv_heads) for share in shares]
        model = FirstRank(part, group, kv_heads, _end_with_rank, head)
        welcome = welcome_of(config, checkpoint, model, chosen.name)
        _serve_stage(config, model, None, welcome, context, gate, started_s)
    group.close()


def _follow(
    config: StageConfig,
    model: StageModel,
    head: SplitHead | None,
    welcome: Welcome,
    group: RankGroup,
    gate: Gate,
    started_s: float,
) -> None:
    """Do what rank 0 does, until standard input ends or another rank is gone."""
    inbox: Mailbox[None] = Mailbox()
    watch_parent(config, inbox.put, gate)
    report_ready(started_s, address=str(group.address), **_facts(welcome))
    try:
        follow(model, group, inbox, head)
    except PeerLost as lost:
        _end_with_rank(lost)


def _facts(welcome: Welcome) -> dict[str, object]:
    """Facts about a stage that is ready, for its parent."""
    return {key: value for key, value in welcome._asdict().items() if key not in ("node", "model", "folder", "weights")}


def _serve_stage(
    config: StageConfig,
    model: StageModel,
    head: WholeHead | None,
    welcome: Welcome,
    context: zmq.Context[zmq.Socket[bytes]],
    gate: Gate,
    started_s: float,
) -> None:
    """Measure the speed, and serve the coordinator and other stages until standard input ends."""
    if config.speed_us is not None:
        warm_up(model)
    prefill_us, decode_us = config.speed_us or measure_speed(model)
    control, data = _listen(context, Address.parse(config.listen), model.hidden_size, config.keys)
    welcome = welcome._replace(data_port=data.address.port, prefill_us=prefill_us, decode_us=decode_us)
    watch = model.check_ranks if isinstance(model, FirstRank) else None
    runner = ModelRunner(model, welcome.context, head)
    compute = ComputeThread(runner, data, awake=config.policy.awake, watch=watch)
    row_bytes = model.hidden_size * codec.DTYPES[model.dtype].itemsize
    frame_bytes = max_data_frame_bytes(model.hidden_size)
    connector = NextStageConnector(context, config.keys, row_bytes, frame_bytes, compute.inbox.put, compute.outbox)
    compute.bulk.connect = connector.begin_bulk
    control_thread = ControlThread(control, compute, connector, welcome, config.driver)
    control_thread.start()
    watch_parent(config, compute.inbox.put, gate)
    report_ready(
        started_s,
        address=str(control.address),
        **_facts(welcome),
    )
    compute.run()
    if isinstance(model, FirstRank):
        model.release_others()
    control_thread.stop()
    compute.close()


def main() -> None:
    """Entry point of ``python -m edgepp.stage_process.main``."""
    if not (line := read_configuration()):
        return  # the parent has ended already
    hold_errors()
    try:
        config = StageConfig.decode(line)
        configure(config.log)
        name_process(config.node, "draft" if config.drafts else str(config.layers))
        serve_drafts(config) if config.drafts else serve(config)
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        known = explained(error)
        if is_ready():  # the parent reads no more reports
            log.error("%s; %s", known, known.hint)
            sys.exit(1)
        try:
            report("error", message=str(known), hint=known.hint)
        except BrokenPipeError:
            sys.stdout = None  # the parent has ended: an exit handler must not flush
        sys.exit(1)


if __name__ == "__main__":
    main()
