"""Other authors' networks with their published widths, as classifiers that can be timed untrained.

Sources: FCN: Wang et al., "Time Series Classification from Scratch with Deep Neural Networks",
IJCNN 2017. ECG ResNet: Ribeiro et al., "Automatic Diagnosis of the 12-Lead ECG Using a Deep Neural
Network", Nature Communications 2020. SpliceAI: Jaganathan et al., "Predicting Splicing from Primary
Sequence with Deep Learning", Cell 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from sparseconv.models.classifier import Classifier, average_and_classify


class FCN(Classifier):
    """Three convolutions, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, n_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__(in_channels, n_classes)
        layers: list[nn.Module] = []
        for width, taps in zip(widths, (8, 5, 3), strict=True):
            layers += [nn.Conv1d(in_channels, width, taps, padding="same")]
            layers += [nn.BatchNorm1d(width), nn.ReLU()]
            in_channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = average_and_classify(in_channels, n_classes)


class EcgResNet(Classifier):
    """The residual network for 12-lead electrocardiograms, with a fifth of all inputs dropped."""

    def __init__(self, in_channels: int, n_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__(in_channels, n_classes)
        stem = nn.Conv1d(in_channels, widths[0], EcgBlock.TAPS, padding="same", bias=False)
        blocks = map(EcgBlock, widths, widths[1:])
        self.blocks = EcgTrunk(nn.Sequential(stem, nn.BatchNorm1d(widths[0]), nn.ReLU()), *blocks)
        self.head = average_and_classify(widths[-1], n_classes)


class EcgTrunk(nn.Sequential):
    """A stem, and blocks that take two series: one before and one after normalisation."""

    def forward(self, input: Tensor) -> Tensor:
        stem, *blocks = self
        x = skipped = stem(input)
        for block in blocks:
            x, skipped = block(x, skipped)
        return x


class EcgBlock(nn.Module):
    """Two convolutions, the second with a stride, next to max pooling and a 1x1 convolution."""

    TAPS, STRIDE, DROPOUT = 17, 4, 0.2

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        taps, stride = self.TAPS, self.STRIDE
        self.first = nn.Sequential(
            nn.Conv1d(channels, width, taps, padding="same", bias=False),
            nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(self.DROPOUT),
        )  # fmt: skip
        around = (taps - stride + 1) // 2
        self.second = nn.Conv1d(width, width, taps, stride, around, bias=False)
        self.skip = nn.Sequential(
            nn.MaxPool1d(stride, stride), nn.Conv1d(channels, width, 1, bias=False)
        )
        self.after = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(self.DROPOUT))

    def forward(self, x: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        skipped = self.second(self.first(x)) + self.skip(skipped)
        return self.after(skipped), skipped


class SpliceAI(Classifier):
    """The network with a context of 10 000 bases; its output is averaged, not cropped."""

    SIZES = ((11, 1), (11, 4), (21, 10), (41, 25))  # taps and dilation of four blocks each

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__(in_channels, n_classes)
        self.blocks = SpliceTrunk(in_channels, width, self.SIZES)
        self.head = average_and_classify(width, n_classes)


class SpliceTrunk(nn.Sequential):
    """Groups of residual blocks, whose outputs are summed after 1x1 convolutions."""

    def __init__(self, channels: int, width: int, sizes: tuple[tuple[int, int], ...]) -> None:
        groups = [nn.Sequential(*(SpliceBlock(width, *size) for _ in range(4))) for size in sizes]
        super().__init__(nn.Conv1d(channels, width, 1), *groups)
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in (None, *sizes))

    def forward(self, input: Tensor) -> Tensor:
        total: Tensor | None = None
        for group, skip in zip(self, self.skips, strict=False):
            input = group(input)
            total = skip(input) if total is None else total + skip(input)
        assert total is not None
        return total


class SpliceBlock(nn.Module):
    """A residual block of two dilated convolutions, each after BatchNorm and ReLU."""

    def __init__(self, width: int, taps: int, dilation: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm1d(width), nn.ReLU()]
            layers += [nn.Conv1d(width, width, taps, padding="same", dilation=dilation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y
