"""What the ROCm kernels cost, read from their code objects, and what AMD's published rates make of it."""
