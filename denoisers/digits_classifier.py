"""The judge of sampled digits: a small convolutional classifier with features for the Frechet distance."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsClassifier(nn.Module):
    """Logits (B, 10) of images (B, 1, 8, 8) in [-1, 1]; `features` gives the penultimate layer."""

    def __init__(self, width: int = 24, num_features: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * 16, num_features),
            nn.SiLU(),
        )
        self.head = nn.Linear(num_features, 10)

    def features(self, images: Tensor) -> Tensor:
        """(B, F) activations before the last linear layer."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
