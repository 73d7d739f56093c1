"""The video decoder as a stream: latent frames go in, pixels come out as soon as nothing can change them any more.

Only convolutions look at more than one frame, and each at three in a row. One that keeps the last two frames it was
given can go on where it stopped, one frame behind where it looks ahead; a residual waits for its branch. The pixels
are those of the whole decode, no frame is computed twice, and memory does not grow with the clip.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx

from mlx_ltx2.errors import RequestError
from mlx_ltx2.models.layers.kernels import contiguous
from mlx_ltx2.models.video_vae.blocks import ResBlock, ResGroup, Upsample
from mlx_ltx2.models.video_vae.config import VideoVAEConfig
from mlx_ltx2.models.video_vae.convolution import CausalConv3d
from mlx_ltx2.models.video_vae.decoder import TIMESTEP, VideoDecoder
from mlx_ltx2.models.video_vae.rearrange import unpatchify_pixels

CHUNK = 4
"""Frames that a block is fed at a time: many enough to fill a GPU, few enough to weigh less than what is kept."""

Evaluate = Callable[..., None]


class Window:
    """What a convolution over three frames reads: its kept frames, then the new ones, the clip's ends repeated.

    start: number of the first frame that the latest result begins with, -1 or -2 where the first is repeated.
    """

    def __init__(self, causal: bool):
        self._before, self._after = (2, 0) if causal else (1, 1)
        self._kept: mx.array | None = None
        self._next = -self._before
        self.start = self._next

    @property
    def kept(self) -> list[mx.array]:
        """The frames that the next push reads again; evaluate them with the result, or graphs pile up."""
        return [] if self._kept is None else [self._kept]

    def push(self, x: mx.array, last: bool) -> mx.array | None:
        """(B,f,H,W,C), at least one frame -> (B,n+2,H,W,C) for the n frames that can be computed; None if n is 0."""
        before = [x[:, :1]] * self._before if self._kept is None else [self._kept]
        joined = mx.concatenate([*before, x, *[x[:, -1:]] * (self._after if last else 0)], axis=1)
        count = joined.shape[1]
        self.start, self._next = self._next, self._next + count - 2
        # A copy: a view would keep all of `joined` alive.
        self._kept = None if last else contiguous(joined[:, -2:])
        return joined if count > 2 else None


class Node(Protocol):
    """One station of the stream."""

    def push(self, x: mx.array, last: bool) -> mx.array | None:
        """Take frames, give those that are settled, or None; `last` ends the clip and gives all that are left."""

    @property
    def kept(self) -> list[mx.array]:
        """Frames that are needed again."""


class ConvNode:
    """A convolution with what stands before and behind it, frame by frame."""

    def __init__(
        self,
        conv: CausalConv3d,
        causal: bool,
        before: Callable[[mx.array], mx.array] = lambda x: x,
        behind: Callable[[mx.array], mx.array] = lambda x: x,
    ):
        self._conv, self._before, self._behind = conv.conv, before, behind
        self._window = Window(causal)

    @property
    def kept(self) -> list[mx.array]:
        return self._window.kept

    def push(self, x: mx.array, last: bool) -> mx.array | None:
        window = self._window.push(x, last)
        return None if window is None else self._behind(self._conv(self._before(window)))


class ResNode:
    """A residual block. Its input is kept once, for the first convolution and for the sum two frames later."""

    def __init__(self, block: ResBlock, modulation: mx.array | None, causal: bool):
        self._block, self._modulation = block, modulation
        self._first, self._second = Window(causal), Window(causal)
        self._done = 0

    @property
    def kept(self) -> list[mx.array]:
        return [*self._first.kept, *self._second.kept]

    def push(self, x: mx.array, last: bool) -> mx.array | None:
        block = self._block
        window = self._first.push(x, last)
        if window is None:
            return None
        h = block.conv1.conv(block.before_conv1(window, self._modulation))
        inner = self._second.push(block.before_conv2(h, self._modulation), last)
        if inner is None:
            return None
        h = block.conv2.conv(inner)
        skipped = self._done - self._first.start
        self._done += h.shape[1]
        return window[:, skipped : skipped + h.shape[1]] + h


class UpsampleNode:
    """An upsampler; one that doubles frames drops the clip's first."""

    def __init__(self, block: Upsample, causal: bool):
        self._block = block
        self._window = Window(causal)
        self._drop = block.stride[0] == 2
        self._middle = 2 if causal else 1

    @property
    def kept(self) -> list[mx.array]:
        return self._window.kept

    def push(self, x: mx.array, last: bool) -> mx.array | None:
        window = self._window.push(x, last)
        if window is None:
            return None
        h = self._block.conv.conv(window)
        h = self._block.expand(window[:, self._middle : self._middle + h.shape[1]], h)
        if self._drop:
            self._drop, h = False, h[:, 1:]
        return h


class StreamingDecoder:
    """One clip on its way through a decoder; `push` takes latent frames in order.

    chunk: frames that a block is fed at a time, 1 or more. evaluate: `mx.eval`, or what stands for it; called after
    every block with its result and what it keeps, so that no more than one block is pending.
    """

    def __init__(
        self,
        decoder: VideoDecoder,
        *,
        evaluate: Evaluate,
        timestep: float = TIMESTEP,
        chunk: int = CHUNK,
    ):
        if chunk < 1:
            raise RequestError(f"a streaming decoder was told to take {chunk} frames at a time; 1 is the least.")
        self._decoder, self._evaluate, self._chunk = decoder, evaluate, chunk
        self._nodes = _nodes(decoder, decoder.scale_timestep(timestep))
        self._queues: list[deque[tuple[mx.array, bool]]] = [deque() for _ in self._nodes]

    def push(self, latent: mx.array, noise: mx.array | None = None, *, last: bool) -> Iterator[mx.array]:
        """(B,f,H',W',C) normalised latents, and their noise -> pixels (B,n,32H',32W',3), some at a time.

        Pixels lag behind by the frames that the decoder looks ahead; `last` gives all of them.
        """
        self._put(0, self._decoder.prepare(latent, noise), last)
        while (place := self._deepest()) is not None:
            node = self._nodes[place]
            x, ends = self._queues[place].popleft()
            result = node.push(x, ends)
            del x  # so that it can be freed while the block computes
            self._evaluate(*node.kept, *([] if result is None else [result]))
            if result is None:
                continue
            if place + 1 == len(self._nodes):
                yield result
            else:
                self._put(place + 1, result, ends)
            del result

    def _deepest(self) -> int | None:
        return next((i for i in reversed(range(len(self._nodes))) if self._queues[i]), None)

    def _put(self, place: int, x: mx.array, last: bool) -> None:
        cuts = list(range(self._chunk, x.shape[1], self._chunk))
        ending = _ending(self._chunk)
        if last and x.shape[1] - max(cuts, default=0) > ending:
            cuts.append(x.shape[1] - ending)
        pieces = mx.split(x, cuts, axis=1) if cuts else [x]
        for number, piece in enumerate(pieces, 1):
            self._queues[place].append((piece, last and number == len(pieces)))


def _ending(chunk: int) -> int:
    """Frames of the piece that ends the clip: a block gives two more for it, which must not weigh more than a chunk."""
    return max(1, chunk // 2)


def _nodes(decoder: VideoDecoder, timestep: mx.array | None) -> list[Node]:
    causal, size = decoder.causal, decoder.config.patch_size
    dtype = decoder.conv_in.conv.weight.dtype
    nodes: list[Node] = [ConvNode(decoder.conv_in, causal)]
    for block in decoder.up_blocks:
        if isinstance(block, ResGroup):
            embedding = block.embed(timestep, dtype)
            nodes += [ResNode(res, res.modulation(embedding), causal) for res in block.res_blocks]
        else:
            nodes.append(UpsampleNode(block, causal))
    nodes.append(
        ConvNode(
            decoder.conv_out,
            causal,
            lambda x: decoder.before_conv_out(x, timestep),
            lambda x: unpatchify_pixels(x, size),
        )
    )
    return nodes


def stream_decode(
    decoder: VideoDecoder,
    latent: mx.array,
    *,
    evaluate: Evaluate,
    noise: mx.array | None = None,
    timestep: float = TIMESTEP,
    chunk: int = CHUNK,
) -> Iterator[mx.array]:
    """Decode a clip as `decoder(latent, noise=noise, timestep=timestep)` does, a few frames at a time.

    latent, noise, timestep: as the decoder takes them. chunk, evaluate: see `StreamingDecoder`.
    Yields: (B,f,32H',32W',3) stretches in order, 8(F'-1)+1 frames in all.
    Raises: ShapeError or RequestError as the decoder does.
    """
    decoder.check(latent, noise)
    stream = StreamingDecoder(decoder, evaluate=evaluate, timestep=timestep, chunk=chunk)
    count = latent.shape[1]
    for first in range(0, count, chunk):
        part = slice(first, first + chunk)
        yield from stream.push(latent[:, part], None if noise is None else noise[:, part], last=first + chunk >= count)


@dataclass(frozen=True)
class _Station:
    """Amounts of one node. cells: of a frame that it reads. convolutions: in a row. made: values of a frame it gives.

    doubles: whether it gives two frames for one. reflects: whether its padding is a copy.
    """

    cells: int
    channels: int
    convolutions: int
    made: int
    doubles: bool = False
    reflects: bool = False

    @property
    def kept(self) -> int:
        return 2 * self.convolutions * self.cells * self.channels

    def waiting(self, chunk: int) -> int:
        """Values that lie in the queue behind it while what follows takes the first half of them."""
        return 2 * chunk * self.made if self.doubles else 0

    def working(self, chunk: int, unfolds: bool) -> int:
        """Values that live while it computes: what the convolutions read, its padded copies, and what they give.

        A backend that unfolds also runs ahead, so that nothing is freed until the node is done (measured).
        """
        frames = [max(chunk, _ending(chunk) + n + 1) for n in range(self.convolutions)]
        made = frames[-1] * self.made * (2 if self.doubles else 1)
        copies = 5 + (2 if self.reflects else 0)
        if not unfolds:
            return self.cells * self.channels * 3 * (frames[0] + 2) + 2 * made
        per_cell = 27 * sum(frames) + copies * sum(n + 2 for n in frames)
        return self.cells * self.channels * per_cell + 4 * made * (self.convolutions == 1)


def _stations(config: VideoVAEConfig, height: int, width: int) -> list[_Station]:
    cells, channels = height * width, config.bottleneck_channels
    found = [_Station(cells, config.latent_channels, 1, cells * channels)]
    for block in reversed(config.decoder_blocks):
        if block.kind == "res_x":
            found += [_Station(cells, channels, 2, cells * channels)] * block.num_layers
            continue
        read = (cells, channels)
        cells, channels = cells * math.prod(block.stride[1:]), channels // block.multiplier
        found.append(_Station(*read, 1, cells * channels, doubles=block.stride[0] == 2))
    found.append(_Station(cells, channels, 1, cells * config.out_channels * config.patch_size**2))
    return [replace(station, reflects=config.decoder_padding == "reflect") for station in found]


def streaming_decode_bytes(
    config: VideoVAEConfig,
    height: int,
    width: int,
    itemsize: int,
    chunk: int = CHUNK,
    *,
    unfolds: bool = False,
) -> int:
    """Peak memory of a streamed decode without weights, latents and what becomes of the pixels; flat in frames.

    height, width: of the latent. itemsize: bytes of a value in the weights' type. chunk: see `StreamingDecoder`.
    unfolds: whether the backend writes the 27 neighbours of every cell out before it multiplies (MLX on a CPU).
    """
    stations = _stations(config, height, width)
    kept = sum(station.kept for station in stations)
    waiting = sum(station.waiting(chunk) for station in stations)
    return itemsize * (kept + waiting + max(station.working(chunk, unfolds) for station in stations))
