"""Between a vector of parameters and a candidate: which widths a sampler can propose."""
