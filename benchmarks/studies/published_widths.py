"""Other authors' networks with their published widths, as classifiers that can be timed untrained.

Their outputs are averaged instead of being cropped, compared with labels or made audible. Sources:

- FCN: Wang et al., "Time Series Classification from Scratch with Deep Neural Networks", IJCNN 2017
- ECG ResNet: Ribeiro et al., "Automatic Diagnosis of the 12-Lead ECG Using a Deep Neural Network",
  Nature Communications 2020
- SpliceAI: Jaganathan et al., "Predicting Splicing from Primary Sequence with Deep Learning", 2019
- Basset: Kelley et al., "Basset: Learning the Regulatory Code of the Accessible Genome", 2016
- M5: Dai et al., "Very Deep Convolutional Neural Networks for Raw Waveforms", ICASSP 2017
- TCN: Bai et al., "An Empirical Evaluation of Generic Convolutional and Recurrent Networks", 2018
- WaveNet: the standard model of Neural Amp Modeler, gated
- PhaseNet: Zhu and Beroza, "PhaseNet", 2019, with the released code's widths
- U-Sleep: Perslev et al., "U-Sleep: Resilient High-Frequency Sleep Staging", 2021
- EQTransformer: Mousavi et al., "Earthquake Transformer", 2020, without its attention
- HiFi-GAN: Kong et al., "HiFi-GAN", NeurIPS 2020: the generators V1 and V3
- Wav2Letter: Collobert et al., "Wav2Letter", 2016
- Conv-TasNet: Luo and Mesgarani, "Conv-TasNet", 2019

Modules of the blocks, except torch's layers, also accept images ``(N, C, 1, L)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparseconv.models.classifier import Classifier, Parallel, Residual, average_and_classify


class Published(Classifier):
    """Layers from series to series of ``width`` channels, with a head."""

    def __init__(
        self, in_channels: int, width: int, *layers: nn.Module, head: nn.Module | None = None
    ) -> None:
        super().__init__(in_channels, 2)
        self.blocks = nn.Sequential(*layers)
        self.head = head or average_and_classify(width, 2)


class Added(nn.Sequential):
    """``x + layers(x)``."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def normed(
    inputs: int, outputs: int, taps: int, *options: int, bias: bool = True
) -> list[nn.Module]:
    """Return a convolution, BatchNorm and ReLU; without a stride, the length is kept."""
    conv = nn.Conv1d(inputs, outputs, taps, *(options or (1, "same")), bias=bias)
    return [conv, nn.BatchNorm1d(outputs), nn.ReLU()]


def fcn(widths: Sequence[int] = (128, 256, 128)) -> Published:
    sizes = zip((1, *widths), widths, (8, 5, 3), strict=False)
    return Published(1, widths[-1], *(layer for size in sizes for layer in normed(*size)))


def ecg_resnet() -> Published:
    """Build the residual network for electrocardiograms of 12 leads."""
    widths = (64, 128, 196, 256, 320)
    stem = nn.Sequential(*normed(12, widths[0], 17, bias=False))
    return Published(12, widths[-1], EcgTrunk(stem, *map(EcgBlock, widths, widths[1:])))


class EcgTrunk(nn.Sequential):
    """A stem, and blocks that take two series: one before and one after normalisation."""

    def forward(self, input: Tensor) -> Tensor:
        stem, *blocks = self
        x = skipped = stem(input)
        for block in blocks:
            x, skipped = block(x, skipped)
        return x


class EcgBlock(nn.Module):
    """Two convolutions, the second with stride 4, next to max pooling and a 1x1 convolution."""

    def __init__(self, channels: int, width: int, taps: int = 17, dropout: float = 0.2) -> None:
        super().__init__()
        first = normed(channels, width, taps, bias=False)
        self.first = nn.Sequential(*first, nn.Dropout(dropout))
        self.second = nn.Conv1d(width, width, taps, 4, (taps - 3) // 2, bias=False)
        self.skip = nn.Sequential(nn.MaxPool1d(4, 4), nn.Conv1d(channels, width, 1, bias=False))
        self.after = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        skipped = self.second(self.first(x)) + self.skip(skipped)
        return self.after(skipped), skipped


def splice_ai(width: int = 32) -> Published:
    """Build the network with a context of 10 000 bases."""
    return Published(4, width, SpliceTrunk(width, ((11, 1), (11, 4), (21, 10), (41, 25))))


class SpliceTrunk(nn.Sequential):
    """Groups of four residual blocks, whose outputs are summed after 1x1 convolutions."""

    def __init__(self, width: int, sizes: Sequence[tuple[int, int]]) -> None:
        def block(taps: int, dilation: int) -> nn.Module:
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [nn.BatchNorm1d(width), nn.ReLU()]
                layers += [nn.Conv1d(width, width, taps, padding="same", dilation=dilation)]
            return Added(*layers)

        groups = (nn.Sequential(*(block(*size) for _ in range(4))) for size in sizes)
        super().__init__(nn.Conv1d(4, width, 1), *groups)
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in (None, *sizes))

    def forward(self, input: Tensor) -> Tensor:
        total = None
        for group, skip in zip(self, self.skips, strict=False):
            input = group(input)
            total = skip(input) if total is None else total + skip(input)
        return total


def basset() -> Published:
    layers: list[nn.Module] = []
    for inputs, outputs, taps, pooled in ((4, 300, 19, 3), (300, 200, 11, 4), (200, 200, 7, 4)):
        layers += [*normed(inputs, outputs, taps), nn.MaxPool1d(pooled)]
    head: list[nn.Module] = [nn.Flatten()]
    for inputs in (200 * 12, 1000):
        head += [nn.Linear(inputs, 1000), nn.ReLU(), nn.Dropout(0.3)]
    head += [nn.Linear(1000, 164), nn.LogSoftmax(1)]
    return Published(4, 200, *layers, head=nn.Sequential(*head))


def m5() -> Published:
    layers = [*normed(1, 128, 80, 4, 38), nn.MaxPool1d(4)]
    for inputs, outputs in pairwise((128, 128, 256, 512)):
        layers += [*normed(inputs, outputs, 3), nn.MaxPool1d(4)]
    return Published(1, 512, *layers)


class Crop(nn.Module):
    """Drops samples at the end."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : -self.samples]


def tcn(width: int = 25, taps: int = 7, levels: int = 8, dropout: float = 0.05) -> Published:
    blocks: list[nn.Module] = []
    for level in range(levels):
        body: list[nn.Module] = []
        past = (taps - 1) * 2**level
        first = width if level else 1
        for inputs in (first, width):
            conv = nn.Conv1d(inputs, width, taps, padding=past, dilation=2**level)
            body += [conv, Crop(past), nn.ReLU(), nn.Dropout(dropout)]
        across = nn.Identity() if level else nn.Conv1d(first, width, 1)
        blocks.append(Residual(nn.Sequential(*body), across))
    return Published(1, width, *blocks)


class WaveNet(nn.Module):
    """Arrays of gated, dilated convolutions without padding, all of which read the input."""

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.firsts, self.lasts = nn.ModuleList(), nn.ModuleList()
        self.convs, self.mixed, self.across = (nn.ModuleList() for _ in range(3))
        for inputs, (width, head) in zip((1, *widths), pairwise((*widths, 1)), strict=False):
            self.firsts.append(nn.Conv1d(inputs, width, 1, bias=False))
            self.lasts.append(nn.Conv1d(width, head, 1, bias=False))
            for i in range(depth):
                self.convs.append(nn.Conv1d(width, 2 * width, 3, dilation=2**i))
                self.mixed.append(nn.Conv1d(1, 2 * width, 1, bias=False))
                self.across.append(nn.Conv1d(width, width, 1))
        self.across[-1] = nn.Identity()  # nothing reads it
        self.depth = depth

    def forward(self, input: Tensor) -> Tensor:
        x, head = input, None
        layers = zip(self.convs, self.mixed, self.across, strict=True)
        for first, last in zip(self.firsts, self.lasts, strict=True):
            x = first(x)
            for _, (conv, mixed, across) in zip(range(self.depth), layers, strict=False):
                both = conv(x)
                length = both.shape[-1]
                both = both + mixed(input)[..., -length:]
                filtered, gate = both.chunk(2, 1)
                y = torch.tanh(filtered) * torch.sigmoid(gate)
                head = y if head is None else head[..., -length:] + y
                x = x[..., -length:] + across(y)
            head = last(head)
        return head


class UNet(nn.Module):
    """Encoders with steps down, and decoders that also read what the encoders gave."""

    def __init__(self, parts: Iterable[tuple[nn.Module, ...]], lowest: nn.Module) -> None:
        super().__init__()
        columns = map(nn.ModuleList, zip(*parts, strict=True))
        self.encoders, self.downs, self.ups, self.decoders = columns
        self.lowest = lowest

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            kept.append(encoder(x))
            x = down(kept[-1])
        x = self.lowest(x)
        for up, decoder in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            x, skipped = up(x), kept.pop()
            length = min(x.shape[-1], skipped.shape[-1])
            x = decoder(torch.cat([skipped[..., :length], x[..., :length]], 1))
        return x


def phase_net(widths: Sequence[int] = (8, 16, 32, 64, 128), taps: int = 7) -> Published:
    parts = []
    for inputs, width, below in zip((widths[0], *widths), widths, widths[1:], strict=False):
        up = nn.ConvTranspose1d(below, width, taps, 4, bias=False)
        groups = (
            normed(inputs, width, taps), normed(width, width, taps, 4, taps // 2),
            [up, nn.BatchNorm1d(width), nn.ReLU()], normed(2 * width, width, taps),
        )  # fmt: skip
        parts.append(tuple(nn.Sequential(*group) for group in groups))
    lowest = nn.Sequential(*normed(*widths[-2:], taps))
    first = normed(3, widths[0], taps)
    return Published(3, 3, *first, UNet(parts, lowest), nn.Conv1d(widths[0], 3, 1))


def u_sleep() -> Published:
    widths = (2, 6, 9, 11, 15, 20, 28, 40, 55, 77, 108, 152, 214, 306)

    def layers(inputs: int, outputs: int, taps: int = 9) -> list[nn.Module]:
        conv = nn.Conv1d(inputs, outputs, taps, padding="same")
        return [conv, nn.ELU(), nn.BatchNorm1d(outputs)]

    parts = []
    for inputs, width, below in zip(widths, widths[1:-1], widths[2:], strict=False):
        up = nn.Sequential(nn.Upsample(scale_factor=2), *layers(below, width, 2))
        sides = nn.Sequential(*layers(inputs, width)), nn.Sequential(*layers(2 * width, width))
        parts.append((sides[0], nn.MaxPool1d(2), up, sides[1]))
    lowest = nn.Sequential(*layers(*widths[-2:]))
    return Published(2, 6, UNet(parts, lowest), nn.Conv1d(6, 6, 1), nn.Tanh())


class Recurrent(nn.Module):
    """An LSTM in both directions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def eq_transformer() -> Published:
    widths, sizes = (8, 16, 16, 32, 32, 64, 64), (11, 9, 7, 7, 5, 5, 3)
    layers: list[nn.Module] = []
    for inputs, width, taps in zip((3, *widths), widths, sizes, strict=False):
        layers += [nn.Conv1d(inputs, width, taps, padding="same"), nn.ReLU(), nn.MaxPool1d(2)]
    for taps in (3, 3, 3, 3, 2, 3, 2):
        body: list[nn.Module] = []
        for _ in range(2):
            body += [nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)]
            body += [nn.Conv1d(64, 64, taps, padding="same")]
        layers.append(Added(*body))
    for inputs in (64, 16, 16):
        layers += [Recurrent(inputs, 16), nn.Conv1d(32, 16, 1), nn.BatchNorm1d(16)]
    decoders = []
    for _ in range(3):
        decoder: list[nn.Module] = []
        for inputs, (width, taps) in zip(
            (16, *widths[::-1]), zip(widths[::-1], sizes[::-1], strict=True), strict=False
        ):
            decoder += [nn.Upsample(scale_factor=2)]
            decoder += [nn.Conv1d(inputs, width, taps, padding="same"), nn.ReLU()]
        decoders.append(nn.Sequential(*decoder, nn.Conv1d(8, 1, 11, padding="same"), nn.Sigmoid()))
    return Published(3, 3, *layers, Parallel(decoders))


class Mean(nn.ModuleList):
    """The mean of what several modules make of a series."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (module(x) for module in self)
        for y in others:
            first = first + y
        return first / len(self)


def hifi_gan(
    width: int, rates: Sequence[int], blocks: dict[int, tuple[int, ...]], convs: int
) -> Published:
    """Build a generator.

    Args:
        width: channels after the first convolution.
        rates: factors by which series become longer.
        blocks: dilations by number of taps.
        convs: how many convolutions are skipped at once; all but the first have dilation 1.
    """

    def relu_conv(taps: int, dilation: int) -> list[nn.Module]:
        conv = nn.Conv1d(width, width, taps, padding="same", dilation=dilation)
        return [nn.LeakyReLU(0.1), conv]

    layers: list[nn.Module] = [nn.Conv1d(80, width, 7, padding="same")]
    for rate in rates:
        up = nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, rate // 2)
        layers += [nn.LeakyReLU(0.1), up]
        width //= 2
        layers.append(Mean(
            nn.Sequential(*(
                Added(*relu_conv(taps, dilation), *(relu_conv(taps, 1) if convs > 1 else ()))
                for dilation in dilations
            )) for taps, dilations in blocks.items()
        ))  # fmt: skip
    last = nn.Conv1d(width, 1, 7, padding="same")
    return Published(80, 1, *layers, nn.LeakyReLU(0.01), last, nn.Tanh())


def wav2letter(inputs: int = 13) -> Published:
    layers: list[nn.Module] = [nn.Conv1d(inputs, 250, 48, 2, 23), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Conv1d(250, 250, 7, padding=3), nn.ReLU()]
    layers += [nn.Conv1d(250, 2000, 32, padding=16), nn.ReLU(), nn.Conv1d(2000, 2000, 1), nn.ReLU()]
    return Published(inputs, 40, *layers, nn.Conv1d(2000, 40, 1))


class TasNet(nn.Module):
    """Masks for two speakers, from stacked depthwise convolutions, and what they let through."""

    def __init__(self, basis: int, width: int, hidden: int, depth: int, repeats: int) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, basis, 16, 8, bias=False)
        self.first = nn.Sequential(nn.GroupNorm(1, basis), nn.Conv1d(basis, width, 1))
        self.bodies, self.across, self.skips = (nn.ModuleList() for _ in range(3))
        for i in range(depth * repeats):
            far = 2 ** (i % depth)
            conv = nn.Conv1d(hidden, hidden, 3, padding=far, dilation=far, groups=hidden)
            self.bodies.append(nn.Sequential(
                nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden),
                conv, nn.PReLU(), nn.GroupNorm(1, hidden),
            ))  # fmt: skip
            self.skips.append(nn.Conv1d(hidden, width, 1))
            if i:  # nothing reads what the last one would give
                self.across.append(nn.Conv1d(hidden, width, 1))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(width, 2 * basis, 1), nn.Sigmoid())
        self.decoder = nn.ConvTranspose1d(basis, 1, 16, 8, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        encoded = self.encoder(input)
        x, total = self.first(encoded), None
        for body, skip, across in zip(self.bodies, self.skips, (*self.across, None), strict=True):
            y = body(x)
            total = skip(y) if total is None else total + skip(y)
            x = x if across is None else x + across(y)
        masks = self.masks(total).chunk(2, 1)
        return torch.cat([self.decoder(encoded * mask) for mask in masks], 1)


def wavenet() -> Published:
    return Published(1, 1, WaveNet((16, 8), 10))


def conv_tasnet() -> Published:
    return Published(1, 2, TasNet(512, 128, 512, 8, 3))
