"""A pretended CUDA device: tensors that say `cuda:0`, hold their numbers on the CPU, and notice what a GPU would."""
