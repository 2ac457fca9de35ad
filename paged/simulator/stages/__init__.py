"""The control kernels over numpy, vectorised: the same decisions and the same bits."""
