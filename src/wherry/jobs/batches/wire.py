"""What a batch's runner and the gateways say to each other, in frames over a Unix socket.

The runner names itself by JOIN with the token that its queue gave it; the gateway asks the
controller whose token that is, and answers READY. Then each CALL is answered by one REPLY of the
same number, unless CANCEL takes it back.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class RowCall(msgspec.Struct, array_like=True):
    """Header of CALL: a line of the batch; its body is the payload."""

    method: str
    path: str
    request_id: str


class Reply(msgspec.Struct, array_like=True):
    """Header of REPLY; the answer's body is the payload."""

    status: int
    content_type: str
    code: str = ""
    """Of the error, if it is one; `wherry.errors` says which pass by themselves."""
    retry_after_seconds: float = 0.0


class BatchCaller(msgspec.Struct, array_like=True):
    """For whom a runner speaks: what the controller knows of its token."""

    batch_id: str
    team_id: str
    key_id: str


decode_call = msgspec.msgpack.Decoder(RowCall).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def socket_of(run_folder: Path, gateway: str) -> Path:
    """Where the gateway of this name (`gateway 0`) listens for runners."""
    return run_folder / f"batch-{gateway.rpartition(' ')[2]}.sock"
