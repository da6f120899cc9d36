"""What was asked for, through the encoders, to what the transformer reads.

Everything here is computed once per job. Shapes: latents (C, F, H, W); L text tokens, D text width;
A speech feature width, T frames at 30 Hz, V video frames, Y wav2vec hidden states.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5EncoderModel, Wav2Vec2Model

from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.encoded_inputs import EncodedInputs, digest_of
from liveavatar.model.audio_encoder import (
    features_per_video_frame,
    hidden_states,
    normalise_waveform,
    resample_to_30hz,
)
from liveavatar.model.text_encoder import encode_ids, token_ids
from liveavatar.model.transformer import ConditionEmbedder
from liveavatar.model.vae import Encoder
from liveavatar.model.vae_encoding import encode_still

MOTION_FRAMES = 73
"""Frames of the still portrait that stand in for what happened before the video: 19 latents."""


@dataclass(frozen=True)
class Conditions:
    """A job's inputs, encoded.

    Attributes:
        reference_CFHW: latent of the portrait alone, one latent frame.
        motion_CFHW: latents of the portrait held still, 19 latent frames.
        text_LD: text encoder rows of the prompt, at most text_len.
        speech_AV: mixed wav2vec features per video frame, float32; zeros behind the speech.
    """

    reference_CFHW: Tensor
    motion_CFHW: Tensor
    text_LD: Tensor
    speech_AV: Tensor


@dataclass(frozen=True)
class Encoders:
    """The networks that make conditions; each may lie on a device of its own.

    Attributes:
        text: umT5.
        tokenizer: its tokenizer.
        speech: wav2vec 2.0.
        image: encoding half of the autoencoder.
        image_turn: makes what is held while `image` is at work, which takes most memory.
        lately: what they made lately; by default they forget everything.
    """

    text: UMT5EncoderModel
    tokenizer: Tokenizer
    speech: Wav2Vec2Model
    image: Encoder
    image_turn: Callable[[], AbstractContextManager[None]] = nullcontext
    lately: EncodedInputs = field(default_factory=EncodedInputs)


@torch.no_grad()
def encode_conditions(
    encoders: Encoders,
    portrait_HWC: npt.NDArray[np.uint8],
    speech_N: npt.NDArray[np.float32],
    prompt: str,
    *,
    embedder: ConditionEmbedder,
    num_blocks: int,
) -> Conditions:
    """Encode one job, but for what was encoded lately.

    Args:
        encoders: the networks.
        portrait_HWC: uint8 RGB, cropped to the video's size.
        speech_N: float32 mono at 16 kHz.
        prompt: as the user wrote it.
        embedder: tells how many text tokens are kept and how hidden states are mixed.
        num_blocks: blocks that will be generated.

    Raises:
        RequestError: the speech is shorter than one wav2vec frame.
    """
    lately, weights_Y = encoders.lately, embedder.audio_encoder.mixing_weights()
    ids = token_ids(encoders.tokenizer, prompt, embedder.config.text_len)
    # Before any encoder is at work, since this waits for a GPU.
    portrait = digest_of("portrait", portrait_HWC)
    text = digest_of("text", np.array(ids))
    speech = digest_of("speech", speech_N, weights_Y.float().cpu().numpy())
    with encoders.image_turn():
        motion_CFHW = lately.recall(portrait, encoders.image.conv1.weight.device)
        if motion_CFHW is None:
            motion_CFHW = encode_portrait(encoders.image, portrait_HWC)
        reference_CFHW = motion_CFHW[:, :1].contiguous()
    text_LD = lately.recall(text, encoders.text.device)
    if text_LD is None:
        text_LD = encode_ids(encoders.text, ids)
    heard_TA = lately.recall(speech, encoders.speech.device)
    if heard_TA is None:
        heard_TA = encode_speech(encoders.speech, speech_N, weights_Y)
    speech_AV = features_per_video_frame(heard_TA, num_blocks * FRAMES_PER_BLOCK).T.contiguous()
    # And this when all of them are.
    if portrait not in lately:
        with encoders.image_turn():
            lately.keep(portrait, motion_CFHW)
    lately.keep(text, text_LD)
    lately.keep(speech, heard_TA)
    return Conditions(reference_CFHW, motion_CFHW, text_LD, speech_AV)


def encode_portrait(encoder: Encoder, portrait_HWC: npt.NDArray[np.uint8]) -> Tensor:
    """Encode a portrait held still, uint8 RGB, to the motion (C, 19, H, W).

    The autoencoder is causal, so that its first latent frame is the portrait encoded alone.
    """
    image_CHW = torch.tensor(portrait_HWC).permute(2, 0, 1).float() / 255 * 2 - 1
    # Contiguous, as it is behind a link between ranks.
    return encode_still(encoder, image_CHW, MOTION_FRAMES).contiguous()


@torch.no_grad()
def encode_speech(
    encoder: Wav2Vec2Model, speech_N: npt.NDArray[np.float32], mixing_weights_Y: Tensor
) -> Tensor:
    """Encode speech to mixed features at 30 Hz; `features_per_video_frame` picks a video's rows.

    Mixing the hidden states commutes with resampling them in time, so one layer's state exists at a
    time and never the stack of all.

    Args:
        encoder: wav2vec 2.0.
        speech_N: float32 mono at 16 kHz.
        mixing_weights_Y: weight of each hidden state, sum 1.

    Returns:
        (T, A) float32 on the encoder's device.

    Raises:
        RequestError: the speech is shorter than one frame of 25 ms.
    """
    weights = mixing_weights_Y.float().to(encoder.device).unbind()
    # The waveform is not kept by a name: it is gone once the convolutions have read it.
    states = hidden_states(encoder, normalise_waveform(speech_N))
    mixed_TA: Tensor | None = None
    for weight, state_TA in zip(weights, states, strict=True):
        part = state_TA.float() * weight
        mixed_TA = part if mixed_TA is None else mixed_TA.add_(part)
    assert mixed_TA is not None
    return resample_to_30hz(mixed_TA)


def mix_features(features_YAV: Tensor, mixing_weights_Y: Tensor) -> Tensor:
    """Mix stacked hidden states (Y, A, V) that were resampled before, to (A, V) float32."""
    return torch.einsum("yav,y->av", features_YAV.float(), mixing_weights_Y.float())
