"""What all tests share."""

from __future__ import annotations

import torch

# Tests work on tiny tensors, which two threads make slower, not faster; and one thread is the same on every machine.
torch.set_num_threads(1)
