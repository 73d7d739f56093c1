"""Multi-head attention as every transformer of the family uses it.

Reference: ltx_core.model.transformer.attention; config keys apply_gated_attention, qk_norm "rms_norm".
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_ltx2.models.layers.kernels import contiguous, fused
from mlx_ltx2.models.layers.rope import Rope

CPU_QUERIES = 256
"""Rows of the score matrix that exist at a time on the CPU."""


@fused
def _head_gates(logits: mx.array) -> mx.array:
    # Apart from the product with the heads, or every element of a head would compute its sigmoid again.
    return 2 * mx.sigmoid(logits)


def _attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Attention of (B, H, N, D) queries. The CPU has no fused form: there, long sequences go piece by piece."""
    attend, count = mx.fast.scaled_dot_product_attention, queries.shape[2]
    if count <= 2 * CPU_QUERIES or mx.default_device() != mx.Device(mx.cpu):
        return attend(queries, keys, values, scale=scale, mask=mask)
    keys, values = contiguous(keys), contiguous(values)  # once, or every piece would copy them
    rows = [slice(start, start + CPU_QUERIES) for start in range(0, count, CPU_QUERIES)]
    masks = [mask if mask is None or mask.shape[-2] == 1 else mask[..., at, :] for at in rows]
    pieces = [attend(queries[:, :, at], keys, values, scale=scale, mask=m) for at, m in zip(rows, masks, strict=True)]
    return mx.concatenate(pieces, axis=2)


class Attention(nn.Module):
    """Attention with an RMS norm over all heads of the queries and keys together, before the rotation.

    gated: each head's output is scaled by 2*sigmoid of a logit of the query input; logit 0 changes nothing.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        heads: int,
        head_dim: int,
        gated: bool = False,
        *,
        eps: float = 1e-6,
    ):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.scale = head_dim**-0.5
        self.to_q = nn.Linear(query_dim, inner)
        self.to_k = nn.Linear(context_dim, inner)
        self.to_v = nn.Linear(context_dim, inner)
        self.q_norm = nn.RMSNorm(inner, eps)
        self.k_norm = nn.RMSNorm(inner, eps)
        self.to_out = [nn.Linear(inner, query_dim)]
        if gated:
            self.to_gate_logits = nn.Linear(query_dim, heads)

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def keys_values(self, context: mx.array, rope: Rope | None = None) -> tuple[mx.array, mx.array]:
        """(B, S, context_dim) -> keys and values, each (B, H, S, D), which a caller may keep."""
        keys = self._heads(self.k_norm(self.to_k(context)))
        values = self._heads(self.to_v(context))
        if rope is not None:
            keys = rope(keys)
        return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)

    def attend(
        self,
        x: mx.array,
        keys_values: tuple[mx.array, mx.array],
        *,
        rope: Rope | None = None,
        mask: mx.array | None = None,
        skip: mx.array | None = None,
    ) -> mx.array:
        """Queries of x (B, N, query_dim) against ready keys and values -> (B, N, query_dim).

        mask: additive, broadcast to (B, H, N, S). skip: (B,) bool, samples whose output is their own value
        projection (self-attention only).
        """
        keys, values = keys_values
        queries = self._heads(self.q_norm(self.to_q(x)))
        if rope is not None:
            queries = rope(queries)
        out = _attention(queries.transpose(0, 2, 1, 3), keys, values, self.scale, mask)
        if skip is not None:
            out = mx.where(skip[:, None, None, None], values, out)
        return self._project(x, out.transpose(0, 2, 1, 3))

    def _project(self, x: mx.array, out: mx.array) -> mx.array:
        if "to_gate_logits" in self:
            out = out * _head_gates(self.to_gate_logits(x))[..., None]
        return self.to_out[0](out.flatten(2))

    def __call__(
        self,
        x: mx.array,
        context: mx.array | None = None,
        *,
        rope: Rope | None = None,
        key_rope: Rope | None = None,
        mask: mx.array | None = None,
        skip: bool | mx.array | None = None,
    ) -> mx.array:
        """x: (B, N, query_dim); context: (B, S, context_dim), x itself if None -> (B, N, query_dim).

        rope rotates the queries, and the keys too unless key_rope is given. mask: additive, broadcast to
        (B, H, N, S). skip: True, or (B,) bool per sample: leave the attention out and pass the value
        projection on, which still goes through gates and output projection (spatio-temporal guidance).
        """
        context = x if context is None else context
        if skip is True:
            return self._project(x, self._heads(self.to_v(context)))
        keys_values = self.keys_values(context, rope if key_rope is None else key_rope)
        return self.attend(x, keys_values, rope=rope, mask=mask, skip=None if skip is False else skip)
