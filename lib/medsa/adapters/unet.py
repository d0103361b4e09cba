"""A U-Net from scratch on the model's input: what a site's labels are worth without the frozen model."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (32, 32, 64, 128, 256, 32)


class UNetHead(nn.Module):
    """MONAI's `BasicUNet` for `classes`; it asks the frozen model nothing, and is taught from nothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from monai.networks.nets import BasicUNet

        self.network = BasicUNet(2, in_channels=3, out_channels=classes, features=WIDTHS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, S, S) of images (B, 3, S, S) as the image encoder takes them."""
        return self.network(images)
