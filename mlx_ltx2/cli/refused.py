"""Options of the official tools that are refused, each with its reason and what to do instead."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_ltx2.errors import RequestError

_SPLIT = (
    "a checkpoint is read whole, and each network from its own folder once it is converted; give the checkpoint with "
    "--checkpoint-path, or a converted folder with --model"
)
_NO_DURATION = "LTX-2 and LTX-2.3 have no network that guesses a duration; say --num-frames"
_NO_DIFFUSION_VAE = "LTX-2 and LTX-2.3 have no diffusion decoder to be tuned; leave it out"

REFUSED = {
    "--transformer-path": _SPLIT,
    "--video-vae-path": _SPLIT,
    "--audio-vae-path": _SPLIT,
    "--duration-head-path": _NO_DURATION,
    "--auto-duration": _NO_DURATION,
    "--num-generated-keyframes": "LTX-2 and LTX-2.3 were not trained with keyframe slots of their own; leave it out, or "
    "give keyframes with --image PATH FRAME",
    "--hdr": "clips are written in 8 bits with BT.709 tags; leave it out",
    "--diffvae-optimization": _NO_DIFFUSION_VAE,
    "--prompt-enhancer-gemma-root": "prompts are written out by the model's own text encoder; use `mlx-ltx2 enhance "
    "--text-encoder FOLDER` to let another one write, and give its text as --prompt",
    "--temporal-upsampler-path": "a clip is doubled in time afterwards; use `mlx-ltx2 upscale --temporal`",
    "--temporal-upsample-rounds": "a clip is doubled in time afterwards; use `mlx-ltx2 upscale --temporal`",
    "--detailing-lora": "the DFR pipeline is not supported; use --pipeline dev-two-stage-hq",
    "--reference-video": "the DubIt pipeline is not supported; use --audio-file for a picture that follows a sound",
    "--reference-strength": "the DubIt pipeline is not supported; use --reference PATH STRENGTH for an IC-LoRA",
}
"""Option -> reason. Each is named in CONTRIBUTING.md."""


def refuse_options(args: Sequence[str]) -> None:
    """Raise RequestError for the first argument that is an option which is refused."""
    for arg in args:
        name = arg.split("=", 1)[0]
        if name in REFUSED:
            raise RequestError(f"{name} is not supported: {REFUSED[name]}.")
