"""The published autoencoder, layer by layer and a whole clip at once; streams compare with it."""

import torch

from liveavatar.model.vae import Decoder, Encoder, VAEConfig

TINY = VAEConfig(dim=4, num_res_blocks=1)


def plain_causal_conv(video_CTHW: torch.Tensor, conv: torch.nn.Conv3d) -> torch.Tensor:
    """The defining formula, padded in one go: kt - 1 zero frames before, symmetric in space."""
    taps, rows, columns = conv.kernel_size
    sides = (columns // 2, columns // 2, rows // 2, rows // 2, taps - 1, 0)
    padded = torch.nn.functional.pad(video_CTHW, sides)
    return torch.nn.functional.conv3d(padded[None], conv.weight, conv.bias)[0]


def plain_norm(video_CTHW: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    length = video_CTHW.norm(dim=0, keepdim=True).clamp(min=1e-12)
    return video_CTHW / length * len(gamma) ** 0.5 * gamma.view(-1, 1, 1, 1)


def plain_residual(video_CTHW: torch.Tensor, block: torch.nn.Module) -> torch.Tensor:
    silu = torch.nn.functional.silu
    norm1, conv1, norm2, conv2 = block.residual.values()
    hidden = plain_causal_conv(silu(plain_norm(video_CTHW, norm1.gamma)), conv1)
    hidden = plain_causal_conv(silu(plain_norm(hidden, norm2.gamma)), conv2)
    shortcut = block.shortcut
    return hidden + (video_CTHW if shortcut is None else plain_causal_conv(video_CTHW, shortcut))


def plain_attention(video_CTHW: torch.Tensor, attention: torch.nn.Module) -> torch.Tensor:
    channels, _, height, width = video_CTHW.shape
    normed_TCHW = plain_norm(video_CTHW, attention.norm.gamma).transpose(0, 1)
    query, key, value = attention.to_qkv(normed_TCHW).flatten(2).split(channels, dim=1)
    weights = torch.softmax(query.transpose(1, 2) @ key / channels**0.5, dim=-1)
    mixed = (value @ weights.transpose(1, 2)).unflatten(2, (height, width))
    return video_CTHW + attention.proj(mixed).transpose(0, 1)


def plain_upsample(video_CTHW: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    if layer.time_conv is not None:
        first, rest = video_CTHW[:, :1], video_CTHW[:, 1:]
        even, odd = plain_causal_conv(rest, layer.time_conv).chunk(2, dim=0)
        video_CTHW = torch.cat([first, torch.stack([even, odd], dim=2).flatten(1, 2)], dim=1)
    big = video_CTHW.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return layer.resample["1"](big.transpose(0, 1)).transpose(0, 1)


def plain_decode(decoder: Decoder, latent_CFHW: torch.Tensor) -> torch.Tensor:
    """The whole clip by the published formulas, one layer after the other, nothing remembered."""
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (TINY.latent_mean, TINY.latent_std))
    trunk = decoder.decoder
    video = plain_causal_conv(latent_CFHW * std + mean, decoder.conv2)
    video = plain_residual(plain_causal_conv(video, trunk.conv1), trunk.middle[0])
    video = plain_residual(plain_attention(video, trunk.middle[1]), trunk.middle[2])
    for layer in trunk.upsamples:
        is_residual = hasattr(layer, "residual")
        video = plain_residual(video, layer) if is_residual else plain_upsample(video, layer)
    normed = plain_norm(video, trunk.head["0"].gamma)
    return plain_causal_conv(torch.nn.functional.silu(normed), trunk.head["2"])


def plain_downsample(video_CTHW: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    padded = torch.nn.functional.pad(video_CTHW, (0, 1, 0, 1)).transpose(0, 1)
    video_CTHW = layer.resample["1"](padded).transpose(0, 1)
    if layer.time_conv is None:
        return video_CTHW
    later = [
        layer.time_conv(video_CTHW[None, :, last - 2 : last + 1])[0]
        for last in range(2, video_CTHW.shape[1], 2)
    ]
    return torch.cat([video_CTHW[:, :1], *later], dim=1)


def plain_encode(encoder: Encoder, video_CTHW: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (TINY.latent_mean, TINY.latent_std))
    trunk = encoder.encoder
    video = plain_causal_conv(video_CTHW, trunk.conv1)
    for layer in trunk.downsamples:
        is_residual = hasattr(layer, "residual")
        video = plain_residual(video, layer) if is_residual else plain_downsample(video, layer)
    video = plain_attention(plain_residual(video, trunk.middle[0]), trunk.middle[1])
    video = plain_residual(video, trunk.middle[2])
    normed = plain_norm(video, trunk.head["0"].gamma)
    moments = plain_causal_conv(torch.nn.functional.silu(normed), trunk.head["2"])
    return (plain_causal_conv(moments, encoder.conv1)[: TINY.z_dim] - mean) / std
