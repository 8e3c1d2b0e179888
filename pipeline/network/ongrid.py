"""What our networks have in common: sides of images are multiples of a stride, and the layers say how far they look."""

import torch
from torch import nn

from fcn_batch.pipeline.core.reach import Reach


class OnGrid(nn.Module):
    """A network that knows how it looks at an image."""

    stride: int
    reach: Reach

    @property
    def halo(self) -> int:
        """Pixels to read beyond a core that lies on the stride's grid: derived from the layers."""
        return self.reach.halo

    @property
    def phase(self) -> int:
        """Where the coarsest cells begin, as a model's card says it."""
        return self.reach.phase

    def check_sides(self, x: torch.Tensor) -> None:
        """ValueError unless rows and columns are multiples of the stride."""
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"rows and cols must be multiples of {self.stride}, got {tuple(x.shape[-2:])}")
